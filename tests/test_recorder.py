"""How passes are recorded as CUDA graphs, on a planted torch: what fails leaves all as launched passes need it."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from server.recorder import WARM_UPS, CudaRecorder
from tests.planted_cuda import PlantedCuda

CARD = torch.device("cuda", 0)


@pytest.fixture(params=[False, True], ids=["torch 2.11", "torch 2.13"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PlantedCuda:
    return PlantedCuda(monkeypatch, ends_first=request.param)


def nth(number: int, act: Callable[[], object]) -> Callable[[], Tensor]:
    """A pass that does something besides when it runs for the nth time, of which the last is recorded."""
    runs = iter(range(1, 100))

    def run() -> Tensor:
        if next(runs) == number:
            act()
        return torch.ones(3)

    return run


def test_a_recording_runs_again_on_the_stream_of_all_the_rest(card: PlantedCuda) -> None:
    streams = []
    recorder = CudaRecorder(CARD)
    replay = recorder.record(nth(WARM_UPS + 1, lambda: streams.append(card.recording)))
    assert streams == [card.side]
    assert replay().tolist() == [1, 1, 1]
    assert (card.num_replays, card.references, card.current, card.routed_to) == (1, 1, card.default, None)


@pytest.mark.parametrize("is_cuda", [True, False])
def test_what_cannot_be_recorded_leaves_stream_and_allocator_as_they_were(card: PlantedCuda, is_cuda: bool) -> None:
    """And says itself why, whether CUDA or Python has raised it."""

    def fail() -> None:
        raise ValueError("not to be recorded")

    recorder = CudaRecorder(CARD)
    with pytest.raises(RuntimeError if is_cuda else ValueError, match="not permitted" if is_cuda else "not to be"):
        recorder.record(nth(WARM_UPS + 1, card.read if is_cuda else fail))
    assert (card.current, card.recording, card.routed_to) == (card.default, None, None)
    assert recorder.held_bytes() == 0
    recorder.record(nth(0, card.read))()  # and nothing is in the way of another
    assert card.num_replays == 1


def test_a_recording_that_cannot_begin_leaves_them_too(card: PlantedCuda) -> None:
    card.is_busy = True
    with pytest.raises(RuntimeError, match="legacy stream"):
        CudaRecorder(CARD).record(nth(0, card.read))
    assert (card.current, card.routed_to, card.references) == (card.default, None, 0)


def test_what_a_warm_up_has_launched_is_waited_for_though_it_raises(card: PlantedCuda) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaRecorder(CARD).record(nth(WARM_UPS, fail))
    assert card.default.waited_for == [card.side]
    assert card.current is card.default


@pytest.mark.parametrize("is_enabled", [True, False])
def test_no_garbage_is_collected_while_it_records(card: PlantedCuda, is_enabled: bool) -> None:
    found, before = [], gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        recorder = CudaRecorder(CARD)
        recorder.record(nth(WARM_UPS + 1, lambda: found.append(gc.isenabled())))
        with pytest.raises(RuntimeError):
            recorder.record(nth(WARM_UPS + 1, card.read))
        found.append(gc.isenabled())
    finally:
        (gc.enable if before else gc.disable)()
    assert found == [False, is_enabled]


def test_what_recordings_keep_is_what_lies_in_their_pool(card: PlantedCuda) -> None:
    """However much loaders take on other threads meanwhile, and what a warm-up took."""
    recorder = CudaRecorder(CARD)
    recorder.record(nth(WARM_UPS + 1, lambda: card.take(2 << 20)))
    assert recorder.held_bytes() == 2 << 20
    card.segments.append({"segment_pool_id": (0, 0), "total_size": 5 << 20})
    recorder.record(nth(WARM_UPS, lambda: card.take(3 << 20)))
    assert recorder.held_bytes() == 2 << 20
    recorder.forget()
    assert recorder.held_bytes() == 0
