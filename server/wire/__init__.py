"""Other servers' routes, so that their clients work unchanged: one file each, a translation to `server.classification`.

A wire module has `router`, its routes, and `problem`, which puts an error into the shape its clients know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastapi import APIRouter, Response

from server.errors import AdaptermuxError


class Wire(Protocol):
    """What every module here is."""

    router: APIRouter
    problem: Callable[[AdaptermuxError], Response]


WIRES: tuple[Wire, ...] = ()
