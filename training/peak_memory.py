"""The most memory that a training run has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most that this process has held so far: of the accelerator where there is one, else of main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # unlike ru_maxrss, it does not begin with what the parent held when it started this process
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found is not None:
            return int(found[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
