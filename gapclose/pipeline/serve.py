"""The command ``gapclose serve``: an OpenAI-compatible endpoint for a run's model, with the monitor's reading."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gapclose.core.imports import require
from gapclose.pipeline.monitor import Monitor
from gapclose.pipeline.run_model import load_run_model, refuse_no_run, run_config

KEY = "GAPCLOSE_API_KEY"
"""environment variable with the bearer key"""
CONNECTIONS = 64
"""connections at once; more are answered with 503"""
STOPPING_SECONDS = 10
"""for answers in progress when the server is stopped"""


def serve(arguments: Sequence[str]) -> None:
    """Serve the model of a run until Ctrl-C.

    Raises:
        ValueError: for a run, an address or a limit that cannot be used, before the model loads; and
            when the run's model is not the monitor's.
    """
    args = _arguments(arguments)
    for module in ("fastapi", "uvicorn"):
        require(module, "serve", "gapclose serve")
    import uvicorn

    from gapclose.pipeline.chat_server import Limits, ServedModel, chat_app

    refuse_no_run(args.run)
    key, local = os.environ.get(KEY) or None, _is_loopback(args.host)
    if not local and key is None:
        raise ValueError(f"--host {args.host} is open to other machines; set a key in the environment variable {KEY} first")
    bound = _bind(args.host, args.port)
    with bound:
        monitor, config = Monitor.from_pretrained(args.run), run_config(args.run)
        loaded = load_run_model(config, args.run, base=args.base)
        monitor.check(loaded.model, loaded.processor, [{"role": "user", "content": "Hello"}])  # refuses another model now
        limits = Limits(seconds=args.seconds, tokens=args.tokens, megabytes=args.megabytes)
        served = ServedModel(name=args.run.resolve().name, loaded=loaded, monitor=monitor, limits=limits)
        app = chat_app(served, key=key, hosts=["localhost", "127.0.0.1", args.host] if local else None)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        print(f"model {served.name!r} at http://{shown}:{bound.getsockname()[1]}/v1, {'with' if key else 'without'} a key", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(app, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=STOPPING_SECONDS, log_level=config.log_level)
        )
        with suppress(KeyboardInterrupt):  # the server has ended by itself by then
            server.run(sockets=[bound])


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gapclose serve",
        description="An OpenAI-compatible endpoint for the model of a run, with the monitor's reading beside every answer.",
        epilog=f"Requests must show the bearer key in the environment variable {KEY}, where it is set.",
    )
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="run directory")
    parser.add_argument("--base", action="store_true", help="serve the base model, not the adapted one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another than this machine's own needs a key (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=120, help="time for a request and its answer, which then ends (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=1024, help="longest answer, and the default (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=20, help="largest request (default: %(default)s)")
    args = parser.parse_args(arguments)
    for name in ("seconds", "tokens", "megabytes"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be above 0")
    return args


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    """Take the address before the model loads; nobody can connect yet. Raises: ValueError."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ValueError(
            f"{host}:{port} cannot be used ({getattr(error, 'strerror', None) or error}); choose another --port or --host"
        ) from error
    return bound
