"""Structured logging: one JSON line per event on standard error. Never request text."""

from __future__ import annotations

import json
import sys
import time
import traceback
from contextlib import suppress

MOST_PLACES = 8


def event(name: str, /, **fields: object) -> None:
    """Write one event; the name is a verb in the past, such as `adapter_loaded`. A full disk stops nothing else."""
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": name, **fields}
    with suppress(OSError, ValueError):  # full, broken, or closed
        print(json.dumps(record, ensure_ascii=False, default=str), file=sys.stderr, flush=True)


def bug(name: str, error: Exception, /, **fields: object) -> None:
    """Write an event of an error nobody meant to raise: its kind and place, not its message, which may hold a text."""
    places = [f"{one.filename}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)[-MOST_PLACES:]]
    event(name, error=type(error).__name__, places=places, **fields)
