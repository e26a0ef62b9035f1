"""`adaptermux-serve`: serve every adapter below a folder on one frozen base model."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from server import __version__
from server.errors import AdaptermuxError, CannotListen, SettingsError
from server.settings import Settings, add_flags, read_settings

BACKLOG = 2048

EXAMPLE = """example:
  adaptermux-serve --adapters ./adapters --port 8000
  curl -s http://127.0.0.1:8000/v1/classify -H 'content-type: application/json' \\
       -d '{"adapter_id": "device-reviews", "inputs": "Cuff fits well, readings match the clinic."}'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    flags = vars(make_parser().parse_args(arguments))
    try:
        return _serve(read_settings(flags, os.environ))
    except SettingsError as error:
        print(f"adaptermux-serve: {error}", file=sys.stderr)
        return 2
    except AdaptermuxError as error:
        print(f"adaptermux-serve: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """One flag for every setting."""
    parser = argparse.ArgumentParser(
        prog="adaptermux-serve",
        description="Serve every adapter below a folder on one frozen base model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adaptermux {__version__}")
    add_flags(parser)
    return parser


def _serve(settings: Settings) -> int:
    listener = _bind(settings.host, settings.port)  # before the model is loaded: a taken port is told at once

    import signal

    from server import logs
    from server.app import create_app
    from server.connections import web_server
    from server.gate import open_gate
    from server.service import Service

    with listener, open_gate(settings) as gate, Service(settings) as service:
        listener.listen(BACKLOG)
        host, port = listener.getsockname()[:2]
        logs.event("server_started", url=f"http://{host}:{port}", adapters=len(service.catalog.all()))
        # uvicorn answers what is in flight, then raises the signal again, which would end us before the engine is done
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(KeyboardInterrupt):
            web_server(create_app(service.desk, settings.max_body_bytes, gate), settings).run(sockets=[listener])
    logs.event("server_stopped")
    return 0


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port or --host"
        ) from error
    return listener
