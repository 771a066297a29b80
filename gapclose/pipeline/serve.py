"""The command ``gapclose serve``: an OpenAI-compatible endpoint for a run's model, with the monitor's reading."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from contextlib import suppress

from gapclose.core.imports import require
from gapclose.pipeline.command_arguments import KEY
from gapclose.pipeline.monitor import Monitor
from gapclose.pipeline.run_model import load_run_model, run_config

CONNECTIONS = 64
"""connections at once; more are answered with 503"""
STOPPING_SECONDS = 10
"""for answers in progress when the server is stopped"""


def serve(args: argparse.Namespace) -> None:
    """Serve the model of a run until Ctrl-C.

    Args:
        args: of :func:`gapclose.pipeline.command_arguments.serve_arguments`.

    Raises:
        ValueError: for a run, an address or a limit that cannot be used, before the model loads; and
            when the run's model is not the monitor's.
    """
    for module in ("fastapi", "uvicorn"):
        require(module, "serve", "gapclose serve")
    import uvicorn

    from gapclose.pipeline.chat_server import Limits, ServedModel, chat_app

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
        shown = _in_url(args.host)
        app = chat_app(served, key=key, hosts=["localhost", "127.0.0.1", shown] if local else None)
        print(f"model {served.name!r} at http://{shown}:{bound.getsockname()[1]}/v1, {'with' if key else 'without'} a key", flush=True)
        server = uvicorn.Server(
            uvicorn.Config(app, limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=STOPPING_SECONDS, log_level=config.log_level)
        )
        with suppress(KeyboardInterrupt):  # the server has ended by itself by then
            server.run(sockets=[bound])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    """The address as clients write it in a URL and in the header ``Host``."""
    return f"[{ipaddress.ip_address(host).compressed}]" if ":" in host else host


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
