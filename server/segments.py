"""Which adapters act on which rows of the batch in flight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from server.loaded_adapter import LoadedAdapter
from server.methods import Method
from server.methods.base import Segment
from server.products import Products


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

    def __init__(self, products: Products) -> None:
        self._products = products
        self._adapters: Sequence[LoadedAdapter] = ()
        self._sites: dict[Method[Any], set[str]] = {}
        self._spans: dict[Method[Any], list[Span]] = {}
        self._found: dict[str, list[tuple[Method[Any], list[Segment[Any]]]]] = {}

    def begin(self, adapters: Sequence[LoadedAdapter], starts: Sequence[int]) -> None:
        """A pass over texts: text i uses adapters[i] and covers rows starts[i] to starts[i + 1]."""
        self._adapters, self._sites = adapters, defaultdict(set)
        for adapter in adapters:
            self._sites[adapter.method].update(adapter.rows)
        self.move(starts)

    def move(self, starts: Sequence[int]) -> None:
        """From now on text i covers rows starts[i] to starts[i + 1]."""
        self._spans, self._found = defaultdict(list), {}
        for span in join(self._adapters, starts):
            self._spans[span.adapter.method].append(span)

    def end(self) -> None:
        """No batch is in flight."""
        self._adapters, self._sites, self._spans, self._found = (), {}, {}, {}

    def change_input(self, site: str, x: Tensor, is_shared: bool) -> Tensor:
        """What goes into a site, x [rows, d_in]; it is changed in place unless others read it too."""
        for method, segments in self._at(site):
            changing = [segment for segment in segments if method.changes_input(segment.row)]
            if changing:
                x, is_shared = x.clone() if is_shared else x, False
                method.change_input(x, changing, self._products)
        return x

    def change_output(self, site: str, x: Tensor, y: Tensor) -> None:
        """What comes out of a site, in place. x [rows, d_in], y [rows, d_out]."""
        for method, segments in self._at(site):
            method.apply(x, y, segments, self._products)

    def _at(self, site: str) -> list[tuple[Method[Any], list[Segment[Any]]]]:
        """The methods that act at a site, each with its adapters' segments."""
        if site not in self._found:
            self._found[site] = [
                (method, [Segment(s.start, s.stop, row) for s in spans if (row := s.adapter.row(site)) is not None])
                for method, spans in self._spans.items()
                if site in self._sites[method]
            ]
        return self._found[site]


def join(adapters: Sequence[LoadedAdapter], starts: Sequence[int]) -> list[Span]:
    """Join neighbours that use the same adapter; text i covers rows starts[i] to starts[i + 1]."""
    spans = []
    for _, group in groupby(range(len(adapters)), key=lambda i: adapters[i].key):
        rows = list(group)
        spans.append(Span(starts[rows[0]], starts[rows[-1] + 1], adapters[rows[0]]))
    return spans
