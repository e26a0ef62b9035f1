"""Where a measurement comes from: machine, versions, commit and command.

`facts` needs no pydantic, for measurements on machines that have none.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from decision.rows import Provenance

LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "scikit-learn", "scipy", "fastapi", "uvicorn",
    "locust",
)  # fmt: skip
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 for bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}
"""By the name that Linux has for them, the widest first."""
ROOT = Path(__file__).parent.parent


class Facts(TypedDict):
    """The fields of `decision.rows.Provenance`."""

    machine: str
    versions: dict[str, str]
    commit: str
    command: str
    created: str


def provenance(command: str) -> Provenance:
    """Of what is measured now in this process; command: what the user would type to measure it again."""
    from decision.rows import Provenance

    return Provenance(**facts(command))


def facts(command: str) -> Facts:
    """The same, without its type."""
    return Facts(
        machine=machine(),
        versions={"python": platform.python_version(), **_versions()},
        commit=commit(),
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache
def machine() -> str:
    """Processor, cores, memory and accelerators."""
    return ", ".join([_processor(), f"{num_cores()} cores", *_memory(), *_accelerators()])


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def commit() -> str:
    """Of the checkout that this code lies in, `+changes` where files differ from it; `unknown` outside one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != ROOT:
            return "unknown"
        changes = git("status", "--porcelain", "-uno", "--", ".", ":!decision/evidence")  # what measurements write
        return git("rev-parse", "--short=12", "@") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """With the widest of the instructions that matter here: two of one name can differ by more than a factor of two."""
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    widest = next((name for flag, name in INSTRUCTIONS.items() if flag in flags), None)
    found = fields.get("model name") or platform.machine()
    return found if widest is None else f"{found} with {widest}"


def _memory() -> list[str]:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return []
    return [f"{pages * size / 2**30:.0f} GiB"]


def _accelerators() -> list[str]:
    """What the driver names, so that nobody has to import torch for it."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    counts = Counter(line.strip() for line in found.splitlines() if line.strip())
    return [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
