"""The memory of the device that the base model is on, and the way into it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from server import logs

STAGE_BYTES = 4 << 20
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class DeviceMemory(Protocol):
    """Any thread may call it."""

    def enter(self) -> None:
        """Make the device the calling thread's own; a thread does so before anything else that concerns the device."""

    def bring(self, block: Tensor) -> Tensor:
        """Bytes in the host's memory as bytes on the device, all of them there when this returns.

        Raises torch.OutOfMemoryError.
        """

    def works(self) -> bool:
        """Whether the device still does what it is told.

        After an illegal access or a failed assertion in a kernel it does nothing more for this process.
        """


class HostMemory:
    """`DeviceMemory` where the processor itself computes: all is there already."""

    def enter(self) -> None: ...

    def bring(self, block: Tensor) -> Tensor:
        return block

    def works(self) -> bool:
        return True


class CardMemory:
    """`DeviceMemory` of a GPU.

    What is brought goes through two pinned buffers in turn, one of which is filled while the other is copied from, and
    over a stream of its own: no batch waits for it, and nobody but the loader that brings it. Adapters in host memory
    are not pinned themselves: that would take it from everybody else, and pinning holds up all streams (docs/log.md).
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._api = device, torch.get_device_module(device)
        self.enter()  # or the buffers would be pinned by way of another GPU, which costs that one memory
        self._lock = threading.Lock()
        self._stream = self._api.Stream(device)
        self._stages = [(_stage(), self._api.Event()) for _ in range(2)]

    def enter(self) -> None:
        self._api.set_device(self._device)

    def bring(self, block: Tensor) -> Tensor:
        with self._lock, self._api.stream(self._stream):
            arrived = torch.empty_like(block, device=self._device)
            if arrived.is_cuda:
                # when it leaves, a batch that has been cut short may still be reading it
                arrived.record_stream(torch.cuda.default_stream(self._device))
            for start, (stage, copied) in zip(range(0, len(block), STAGE_BYTES), cycle(self._stages), strict=False):
                part = block[start : start + STAGE_BYTES]
                copied.synchronize()
                stage[: len(part)].copy_(part)
                arrived[start : start + len(part)].copy_(stage[: len(part)], non_blocking=True)
                copied.record()
            for _, copied in self._stages:
                copied.synchronize()
        return arrived

    def works(self) -> bool:
        return does_work(self._device)

    def total_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[1])

    def free_bytes(self) -> int:
        """What tensors may still take: what the driver has, and what torch keeps for them."""
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + kept

    def held_bytes(self) -> int:
        """What tensors have taken."""
        return torch.cuda.memory_allocated(self._device)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """How much more than before tensors held at one time while the work was done."""
        before = self.held_bytes()
        torch.cuda.reset_peak_memory_stats(self._device)
        work()
        return torch.cuda.max_memory_allocated(self._device) - before


def memory_of(device: torch.device) -> HostMemory | CardMemory:
    """The memory of a device."""
    if device.type != "cuda":
        return HostMemory()
    return CardMemory(device if device.index is not None else torch.device("cuda", torch.cuda.current_device()))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether less would have gone well; torch raises plain RuntimeErrors for host memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in NO_MEMORY)
    )


def has_failed(memory: DeviceMemory, error: BaseException) -> bool:
    """Whether an error comes of a device that does nothing more for this process: another one must take over.

    The device is asked: its errors are of one class with those of a launch that it refuses and goes on after, and
    libraries beside torch raise others.
    """
    return not is_lack_of_memory(error) and not memory.works()


def does_work(device: torch.device) -> bool:
    """`DeviceMemory.works`, by the calling thread's stream: no device is waited for while a pass is recorded."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.current_stream(device).synchronize()
    except RuntimeError:
        return False
    return True


def _stage() -> Tensor:
    try:
        return torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:  # slower: the driver copies it once more
        logs.event("memory_not_pinned", num_bytes=STAGE_BYTES, reason=str(error).partition("\n")[0])
        return torch.empty(STAGE_BYTES, dtype=torch.uint8)
