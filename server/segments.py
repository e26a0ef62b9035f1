"""Which adapters act on which rows of the batch in flight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from server.methods import Method
from server.methods.base import Segment
from server.store import LoadedAdapter


class Span(NamedTuple):
    """Rows `start` to `stop` of an axis (tokens, or texts) belong to one adapter."""

    start: int
    stop: int
    adapter: LoadedAdapter


class Segments:
    """Lets the methods act at the sites of one pass. Owned by the engine thread.

    An adapter's rows are neighbours: it has one segment. Which axis they are rows of may change within a pass:
    `move` says so.
    """

    def __init__(self) -> None:
        self._adapters: Sequence[LoadedAdapter] = ()
        self._by_method: list[tuple[Method[Any], list[Span]]] = []

    def begin(self, adapters: Sequence[LoadedAdapter], starts: Sequence[int]) -> None:
        """A pass over texts: text i uses adapters[i] and covers rows starts[i] to starts[i + 1]."""
        self._adapters = adapters
        self.move(starts)

    def move(self, starts: Sequence[int]) -> None:
        """From now on text i covers rows starts[i] to starts[i + 1]."""
        spans = join(self._adapters, starts)
        self._by_method = [(method, list(group)) for method, group in groupby(spans, key=lambda s: s.adapter.method)]

    def end(self) -> None:
        """No batch is in flight."""
        self._adapters, self._by_method = (), []

    def change_input(self, site: str, x: Tensor, is_shared: bool) -> Tensor:
        """What goes into a site, x [rows, d_in]; it is changed in place unless others read it too."""
        for method, segments in self._at(site):
            changing = [segment for segment in segments if method.changes_input(segment.row)]
            if changing:
                x, is_shared = x.clone() if is_shared else x, False
                method.change_input(x, changing)
        return x

    def change_output(self, site: str, x: Tensor, y: Tensor) -> None:
        """What comes out of a site, in place. x [rows, d_in], y [rows, d_out]."""
        for method, segments in self._at(site):
            method.apply(x, y, segments)

    def _at(self, site: str) -> Iterator[tuple[Method[Any], list[Segment[Any]]]]:
        for method, spans in self._by_method:
            found = [Segment(s.start, s.stop, row) for s in spans if (row := s.adapter.row(site)) is not None]
            if found:
                yield method, found


def join(adapters: Sequence[LoadedAdapter], starts: Sequence[int]) -> list[Span]:
    """Join neighbours that use the same adapter; text i covers rows starts[i] to starts[i + 1]."""
    spans = []
    for _, group in groupby(range(len(adapters)), key=lambda i: adapters[i].key):
        rows = list(group)
        spans.append(Span(starts[rows[0]], starts[rows[-1] + 1], adapters[rows[0]]))
    return spans
