"""`adaptermux-serve`: serve every adapter below a folder on one frozen base model, and what goes with it."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server import __version__
from server.errors import AdaptermuxError, CannotListen, SettingsError
from server.keys import add_make_key_flags, make_key
from server.settings import CLIENT_KEY, add_flags, read_client_key, read_settings

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

BACKLOG = 2048

SERVE_EXAMPLE = """example:
  adaptermux-serve --adapters ./adapters --port 8000
  curl -s http://127.0.0.1:8000/v1/classify -H 'content-type: application/json' \\
       -d '{"adapter_id": "device-reviews", "inputs": "Cuff fits well, readings match the clinic."}'
"""
SWITCH_S = 0.0002
"""How long the HTTP side may keep the interpreter while the engine's thread waits for it, which happens hundreds of
times a batch. With Python's own 5 ms much less gets done (docs/log.md)."""
CHECK_EXAMPLE = """example:
  adaptermux-serve check adapters
"""
FETCH_BASE_EXAMPLE = """example:
  adaptermux-serve fetch-base s3://models/all-MiniLM-L6-v2 --into /models/all-MiniLM-L6-v2 \\
       --sha256 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
"""
CLASSIFY_EXAMPLE = """example:
  adaptermux-serve classify --adapter device-reviews --column-prefix predicted_ --output answers.csv \\
       training/data/device_reviews/test.csv
"""
MAKE_KEY_EXAMPLE = """example:
  adaptermux-serve make-key --id ci --tenant acme --scope classify
"""
EXAMPLE = f"""Flags without a verb mean serve.

{SERVE_EXAMPLE}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    flags = vars(parse(sys.argv[1:] if arguments is None else arguments))
    verbs = {"serve": _serve, "check": _check, "fetch-base": _fetch_base, "classify": _classify, "make-key": make_key}
    verb = verbs[flags.pop("verb")]
    return exit_code(partial(verb, flags))


def exit_code(work: Callable[[], int]) -> int:
    """Do it; what goes wrong is told in one sentence."""
    try:
        return work()
    except SettingsError as error:
        print(f"adaptermux-serve: {error}", file=sys.stderr)
        return 2
    except (AdaptermuxError, KeyboardInterrupt) as error:
        print(f"adaptermux-serve: {str(error) or 'interrupted'}", file=sys.stderr)
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
    _add_fetch_base_flags(_add_verb(verbs, "fetch-base", "Bring a base model into a folder.", FETCH_BASE_EXAMPLE))
    _add_classify_flags(_add_verb(verbs, "classify", "Send a file to a running server.", CLASSIFY_EXAMPLE))
    add_make_key_flags(_add_verb(verbs, "make-key", "Make a key for the file of keys.", MAKE_KEY_EXAMPLE))
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


def _add_fetch_base_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="s3://bucket/prefix, gs://bucket/prefix or hf:org/name@revision")
    add("--into", type=Path, required=True, metavar="DIR", help="folder to make; adapters know the base by its name")
    add("--sha256", metavar="HEX", help="of the weight files in name order, as GET /v1/base tells (any)")


def _fetch_base(flags: dict[str, Any]) -> int:
    from server.base_fetch import fetch_base

    return fetch_base(flags["source"], flags["into"], flags["sha256"])


def _add_classify_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        metavar="FILE",
        type=Path,
        help="rows: .csv, .jsonl, .txt (one text a line), or - for stdin",
    )
    add("--adapter", required=True, help="name of the adapter")
    add("--url", default="http://127.0.0.1:8000", help="address of the server (%(default)s)")
    add("--api-key-file", type=Path, help=f"file with the key to show (else from {CLIENT_KEY})")
    add("--input-format", choices=("csv", "jsonl", "lines"), help="of FILE (by its suffix; lines from stdin)")
    add("--text-column", default="text", help="column of the texts (%(default)s)")
    add("--pair-column", help="column of the second texts, for pairs")
    add("--output", type=Path, help="file to write; what is interrupted goes on with the same command (stdout)")
    add("--format", choices=("csv", "jsonl"), help="of the output (by its suffix, else as the input)")
    add("--overwrite", action="store_true", help="replace an output that is finished")
    add("--column-prefix", default="", help="put this in front of the names of new columns")
    add("--top-k", type=_from(int, 1), help="also write the best K scores, in the column scores")
    add(
        "--threshold",
        type=_from(float, 0),
        help="several labels a text: the score from which on a label counts (the adapter's)",
    )
    add("--logits", action="store_true", help="write raw logits for scores")
    add("--truncate", action="store_true", help="cut texts that are too long, which are refused otherwise")
    add("--keep-going", action="store_true", help="write rows that are refused, with the reason in the column error")
    add("--batch", type=_from(int, 1), default=64, help="texts in one request (%(default)s)")
    add("--concurrency", type=_from(int, 1), default=4, help="requests under way at a time (%(default)s)")
    add(
        "--retry-s",
        type=_from(float, 0),
        default=60,
        help="how long a busy or lost server is asked again (%(default)s)",
    )
    add("--quiet", action="store_true", help="no progress bar")


def _from(kind: type[int] | type[float], least: int) -> Callable[[str], float]:
    """Reads a number that is not below the least."""

    def read(text: str) -> float:
        number = kind(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        return number

    read.__name__ = "whole number" if kind is int else "number"  # argparse names it where the text is none
    return read


def _classify(flags: dict[str, Any]) -> int:
    from server.asker import Question
    from server.bulk import Order, Traffic, classify_file
    from server.rows import Columns, input_kind, output_kind

    kind = input_kind(flags["source"], flags["input_format"])
    order = Order(
        source=flags["source"],
        input_kind=kind,
        columns=Columns(flags["text_column"], flags["pair_column"]),
        output=flags["output"],
        output_kind=output_kind(flags["output"], flags["format"], kind),
        overwrite=flags["overwrite"],
        question=Question(
            adapter_id=flags["adapter"],
            top_k=flags["top_k"],
            threshold=flags["threshold"],
            truncate=flags["truncate"],
            logits=flags["logits"],
            keep_going=flags["keep_going"],
            column_prefix=flags["column_prefix"],
        ),
    )
    traffic = Traffic(
        url=flags["url"],
        api_key=read_client_key(flags["api_key_file"], os.environ),
        batch=flags["batch"],
        concurrency=flags["concurrency"],
        retry_s=flags["retry_s"],
    )
    classify_file(order, traffic, flags["quiet"])
    return 0


def _serve(flags: dict[str, Any]) -> int:
    sys.setswitchinterval(SWITCH_S)
    settings = read_settings(flags, os.environ)
    listener = _bind(settings.host, settings.port)  # before the model is loaded: a taken port is told at once

    if settings.http_processes:
        from server.processes import Supervisor

        with listener:
            return Supervisor(settings, listener).run()

    import signal

    from server import logs
    from server.advice import Advice
    from server.app import create_app
    from server.connections import web_server
    from server.gate import open_gate
    from server.service import Service

    with listener, open_gate(settings) as gate, Service(settings) as service:
        advice = Advice(settings.evidence, settings.prices)
        web = web_server(create_app(service.desk, settings.max_body_bytes, gate, advice), settings)
        # uvicorn answers what is in flight, then raises the signal again, which would end us before the engine is done;
        # one that comes before it listens for signals itself is kept for it
        signal.signal(signal.SIGTERM, web.handle_exit)
        listener.listen(BACKLOG)
        host, port = listener.getsockname()[:2]
        logs.event("server_started", url=f"http://{host}:{port}", adapters=len(service.catalog.all()))
        with contextlib.suppress(KeyboardInterrupt):
            web.run(sockets=[listener])
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
