"""How infinity is asked, and how its answer is read; set_adapter is asked as our own server is."""

from __future__ import annotations

import json

from loadtest.wire import Answered, parse
from loadtest.workload import Ask


class Infinity:
    """`POST /classify`. The name of its model stands where that of an adapter would."""

    path = "/classify"

    def body(self, adapter_id: str, ask: Ask) -> bytes:
        return json.dumps({"model": adapter_id, "input": ask.texts}).encode()

    def read(self, adapter_id: str, ask: Ask, status: int, content: bytes, server_timing: str | None) -> Answered:
        answer = parse(content)
        if status != 200:
            return Answered(str(status))
        found = answer.get("data") or []
        is_right = answer.get("model") == adapter_id and len(found) == len(ask.texts)
        return Answered(None if is_right and all(one and "label" in one[0] for one in found) else "wrong answer")
