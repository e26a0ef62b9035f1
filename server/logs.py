"""Structured logging: one JSON line per event on standard error. Never request text."""

from __future__ import annotations

import json
import sys
import time


def event(name: str, /, **fields: object) -> None:
    """Write one event; the name is a verb in the past, such as `adapter_loaded`."""
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": name, **fields}
    print(json.dumps(record, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
