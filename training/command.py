"""`adaptermux-train`: make adapters."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from server import __version__
from server.errors import AdaptermuxError, MethodUnsupported, RecipeError
from training.verbs import verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse, 130 stopped by a signal."""
    flags = make_parser().parse_args(arguments)
    # peft reads a property that transformers has renamed; the user can do nothing about it
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        with _stopped_as_by_hand():
            return verbs()[flags.verb].run(flags)
    except KeyboardInterrupt:
        print("adaptermux-train: stopped", file=sys.stderr)
        return 130
    except (RecipeError, MethodUnsupported) as error:
        print(f"adaptermux-train: {error}", file=sys.stderr)
        return 2
    except AdaptermuxError as error:
        print(f"adaptermux-train: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    raw = argparse.RawDescriptionHelpFormatter
    examples = "\n".join(f"  {verb.EXAMPLE}" for verb in verbs().values())
    parser = argparse.ArgumentParser(
        prog="adaptermux-train", description="Make adapters.", epilog=f"examples:\n{examples}", formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"adaptermux {__version__}")
    choices = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in verbs().items():
        verb.add_flags(
            choices.add_parser(
                name,
                help=verb.HELP,
                description=verb.DESCRIPTION,
                epilog=f"example:\n  {verb.EXAMPLE}",
                formatter_class=raw,
            )
        )
    return parser


@contextmanager
def _stopped_as_by_hand() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does, so that what is half-made is taken away."""
    if threading.current_thread() is not threading.main_thread():  # where Python lets no one hear signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
