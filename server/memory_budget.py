"""How a GPU's memory is shared out, once, at the start: base model, the largest batch, adapters, and a reserve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from server.base_model import BaseModel
from server.batch_budget import FEWEST_TOKENS
from server.device_memory import CardMemory, is_lack_of_memory
from server.errors import BaseModelError
from server.forward import Work
from server.graphs import Graphs
from server.heads import Head, head_shapes
from server.jobs import Job
from server.loaded_adapter import LoadedAdapter
from server.methods import methods
from server.methods.base import ATTENTION, Site

RESERVE = 0.05
"""Of the whole memory: gaps between blocks, code that the driver loads when it is first needed."""
MOST_WORKSPACE = 0.5
"""Of what the base model leaves; where a batch would need more, batches are smaller, so that adapters have room."""
MOST_FOR_GRAPHS = 0.25
"""Of what is left for adapters; where recorded passes would keep more, there are none."""
GROWTH = 3
"""Times as much that recorded passes may keep once adapters act in them: up to twice the launches, and some anew."""
HIDDEN_ROWS, WIDE_ROWS = 8, 3
"""What a token has in memory at one time within a layer: rows of the model's width, and of its widest product's."""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """adapter_bytes: room for adapters. batch_tokens: the most that a batch may have. parts: bytes by their use."""

    adapter_bytes: int
    batch_tokens: int
    parts: Mapping[str, int] = field(default_factory=dict)


def share_out(
    card: CardMemory,
    base: BaseModel,
    run: Callable[[list[Work]], object],
    most_tokens: int,
    most_adapter_bytes: int = 0,
    graphs: Graphs | None = None,
) -> MemoryBudget:
    """Share out the memory of the card on which the base model has been loaded.

    run is the forward pass: a batch of most_tokens runs, or of half as many, and so on, until one fits.
    most_adapter_bytes: 0 gives adapters all that is left. graphs: what run records; this has all sizes recorded.
    Raises BaseModelError where the base model leaves no room.
    """
    total = card.total_bytes()
    reserve, num_tokens = int(total * RESERVE), most_tokens
    while (workspace := _workspace(card, base, run, num_tokens, reserve)) is None:
        if num_tokens <= FEWEST_TOKENS:
            raise BaseModelError(
                f"the base model leaves too little memory on {base.device} for adapters and batches of {num_tokens} "
                f"tokens: it has {card.held_bytes():,} of {total:,} bytes, {card.free_bytes():,} are free; "
                "take a smaller base model, --dtype bfloat16 or a larger GPU, or end what else is on it"
            )
        num_tokens = max(FEWEST_TOKENS, num_tokens // 2)
    graph_bytes = 0 if graphs is None else _graph_bytes(base, run, graphs, num_tokens)
    room = card.free_bytes() - reserve - workspace
    if graphs is not None and graph_bytes > room * MOST_FOR_GRAPHS:
        graphs.give_up(f"they would keep {graph_bytes:,} of the {room:,} bytes that are left for adapters")
        graph_bytes = 0
    elif graphs is not None:
        graphs.keep_within(graph_bytes)
    room -= graph_bytes
    parts = {
        "base": card.held_bytes(),
        "workspace": workspace,
        "graphs": graph_bytes,
        "adapters": min(most_adapter_bytes or room, room),
        "reserve": reserve,
        "other": total - card.held_bytes() - card.free_bytes(),
    }
    return MemoryBudget(parts["adapters"], num_tokens, parts)


def _workspace(
    card: CardMemory, base: BaseModel, run: Callable[[list[Work]], object], num_tokens: int, reserve: int
) -> int | None:
    """What the largest batch of so many tokens needs; None where it is more than a batch may have."""
    acting = acting_bytes(base, num_tokens)
    needed = pass_bytes(base, num_tokens) + acting
    if needed > (card.free_bytes() - reserve) * MOST_WORKSPACE:
        return None
    try:
        needed = max(needed, card.peak_bytes(lambda: run(full_batch(base, num_tokens))) + acting)
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        return None
    # asked again: the first pass also makes what later ones reuse
    return needed if needed <= (card.free_bytes() - reserve) * MOST_WORKSPACE else None


def _graph_bytes(base: BaseModel, run: Callable[[list[Work]], object], graphs: Graphs, num_tokens: int) -> int:
    """What recorded passes keep, and what they may come to keep; the largest first, in whose memory the others fit."""
    for count in reversed(graphs.token_counts):
        if count <= num_tokens:
            run(full_batch(base, count))
    if not graphs.token_counts:  # given up
        return 0
    return GROWTH * graphs.held_bytes() + acting_bytes(base, graphs.token_counts[-1])


def pass_bytes(base: BaseModel, num_tokens: int) -> int:
    """What a pass of the bare base takes, by its shape: within a layer, and at the end one row a token in float32."""
    widest = max(site.out_features for site in _linears(base))
    row_bytes = base.dtype.itemsize * (HIDDEN_ROWS * base.hidden_size + WIDE_ROWS * widest) + 4 * base.hidden_size
    return num_tokens * row_bytes


def acting_bytes(base: BaseModel, num_tokens: int) -> int:
    """What adapters take beside it: input and output of one site, in float32."""
    return num_tokens * 4 * max(site.in_features + site.out_features for site in _linears(base))


def full_batch(base: BaseModel, num_tokens: int) -> list[Work]:
    """The batch that needs most: texts as long as they may be, all of whose tokens are read. No adapter acts on it."""
    layers = base.family.linear_head()
    shapes = head_shapes(layers, base.hidden_size, num_labels=1)
    head = Head(layers, {name: torch.zeros(shape, device=base.device) for name, shape in shapes.items()})
    adapter = LoadedAdapter("", next(iter(methods().values())), "mean", rows={}, head=head, resident_bytes=0)
    length = min(base.max_length, num_tokens)
    lengths = [length] * (num_tokens // length) + [num_tokens % length] * (num_tokens % length > 0)
    return [(Job("", "", (0,) * length, (0,) * length), adapter) for length in lengths]


def _linears(base: BaseModel) -> list[Site]:
    return [site for name, site in base.sites.items() if name != ATTENTION]
