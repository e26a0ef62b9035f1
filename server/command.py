"""`adaptermux-serve`: serve every adapter below a folder on one frozen base model, or check the folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server import __version__
from server.errors import AdaptermuxError, CannotListen, SettingsError
from server.settings import add_flags, read_settings

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

BACKLOG = 2048

SERVE_EXAMPLE = """example:
  adaptermux-serve --adapters ./adapters --port 8000
  curl -s http://127.0.0.1:8000/v1/classify -H 'content-type: application/json' \\
       -d '{"adapter_id": "device-reviews", "inputs": "Cuff fits well, readings match the clinic."}'
"""
CHECK_EXAMPLE = """example:
  adaptermux-serve check adapters
"""
EXAMPLE = f"""Flags without a verb mean serve.

{SERVE_EXAMPLE}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    flags = vars(parse(sys.argv[1:] if arguments is None else arguments))
    verb = {"serve": _serve, "check": _check}[flags.pop("verb")]
    try:
        return verb(flags)
    except SettingsError as error:
        print(f"adaptermux-serve: {error}", file=sys.stderr)
        return 2
    except AdaptermuxError as error:
        print(f"adaptermux-serve: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The verb and its flags; flags without a verb mean `serve`."""
    has_verb = arguments and (not arguments[0].startswith("-") or arguments[0] in ("-h", "--help", "--version"))
    return make_parser().parse_args(arguments if has_verb else ["serve", *arguments])


def make_parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    parser = argparse.ArgumentParser(
        prog="adaptermux-serve",
        description="Serve every adapter below a folder on one frozen base model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adaptermux {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_flags(_add_verb(verbs, "serve", "Serve every adapter below a folder.", SERVE_EXAMPLE))
    _add_check_flags(_add_verb(verbs, "check", "Say of adapter folders what a server would.", CHECK_EXAMPLE))
    return parser


def _add_verb(verbs: Verbs, name: str, purpose: str, example: str) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name,
        help=purpose[0].lower() + purpose[1:-1],
        description=purpose,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", metavar="DIR", help="an adapter folder, or a folder of them")
    parser.add_argument("--base", help="base model: a folder or a hub id (that of the server's settings)")
    parser.add_argument("--device", default="cpu", help="where weights are loaded (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def _check(flags: dict[str, Any]) -> int:
    as_json = flags.pop("json")
    settings = read_settings(flags, os.environ)

    from server.check import check_all

    return check_all(settings, as_json)


def _serve(flags: dict[str, Any]) -> int:
    settings = read_settings(flags, os.environ)
    listener = _bind(settings.host, settings.port)  # before the model is loaded: a taken port is told at once

    import signal

    import uvicorn

    from server import logs
    from server.app import create_app
    from server.service import Service

    with listener, Service(settings) as service:
        listener.listen(BACKLOG)
        host, port = listener.getsockname()[:2]
        logs.event("server_started", url=f"http://{host}:{port}", adapters=len(service.catalog.all()))
        # uvicorn answers what is in flight, then raises the signal again, which would end us before the engine is done
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        config = uvicorn.Config(
            create_app(service.desk, settings.max_body_bytes),
            access_log=False,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=settings.drain_s,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
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
