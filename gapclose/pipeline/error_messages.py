"""Print the errors of a command as one line on standard error."""

from __future__ import annotations

import os
import sys
import warnings


def _plainly(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {message}\n"


def guarded(job) -> int:
    """Run ``job()`` and return its exit status.

    It is 0, 2 after an error that a user can fix, or 130 after Ctrl-C. Such an error is printed
    without a traceback; with GAPCLOSE_DEBUG set it is raised.
    """
    warnings.formatwarning = _plainly  # no source lines for users
    try:
        job()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries to flush it once more
        print("stopped: nothing reads standard output any more", file=sys.stderr)
        return 1
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        told = str(error) if isinstance(error, ValueError | FloatingPointError) else _told(error)
        if told is None or os.environ.get("GAPCLOSE_DEBUG"):
            raise
        print(f"error: {told}\n", end="", file=sys.stderr)  # in one call: processes share the output
        return 2
    except KeyboardInterrupt as stop:
        if os.environ.get("GAPCLOSE_DEBUG"):
            raise
        print(f"stopped; {str(stop) or 'the same command goes on from what is there'}", file=sys.stderr)
        return 130
    return 0


def _told(error: OSError | RuntimeError) -> str | None:
    """Describe an error with an outside cause (disk, permission, lost process), or None."""
    from gapclose.core.distributed import RemoteError, peer_lost
    from gapclose.core.files import FAILING, NO_ROOM, NOT_ALLOWED, WriteError

    again = "start the same command again: it goes on from what is there"
    if isinstance(error, OSError) and error.errno in NO_ROOM | NOT_ALLOWED | FAILING:
        what = f"{error.filename or 'a file'}{' cannot be written' if isinstance(error, WriteError) else ''}"
        return f"{what}: {error.strerror}; {'make room' if error.errno in NO_ROOM else 'fix that'} and {again}"
    if isinstance(error, RemoteError):
        return str(error)
    if peer_lost(error):
        return f"another process of this run ended, for a reason that it or the launcher tells; {again}"
    return None
