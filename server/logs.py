"""Structured logging: one JSON line per event on standard error. Never request text."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress


def event(name: str, /, **fields: object) -> None:
    """Write one event; the name is a verb in the past, such as `adapter_loaded`. A full disk stops nothing else."""
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": name, **fields}
    with suppress(OSError, ValueError):  # full, broken, or closed
        print(json.dumps(record, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
