"""Other servers' routes, so that their clients work unchanged: one file each, a translation to `server.classification`.

A wire has `router`, its routes, and `problem`, which puts an error into the shape its clients know. The other modules
here are parts of wires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Response

from server.errors import AdaptermuxError
from server.wire import hugging_face, open_inference, sglang, tei, vllm


@dataclass(frozen=True, slots=True)
class Wire:
    router: APIRouter
    problem: Callable[[AdaptermuxError], Response]


WIRES = (
    Wire(hugging_face.router, hugging_face.problem),
    Wire(tei.router, tei.problem),
    Wire(vllm.router, vllm.problem),
    Wire(sglang.router, sglang.problem),
    Wire(open_inference.router, open_inference.problem),
)
