"""Triton's own piece of C, which lets it talk to the driver, compiled while an image is made: images have no compiler.

    python -m server.triton_cache                                 then: needs gcc and Python's headers, but no GPU
    TRITON_CACHE_MANAGER=server.triton_cache:ShippedFirst         later, where the image runs

What Triton compiles for the card needs no C. It is kept in TRITON_CACHE_DIR, from which nothing has to be executed.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from pathlib import Path

from triton import knobs
from triton.backends.nvidia import driver
from triton.runtime.cache import FileCacheManager

from server.kernels import SHIPPED

DRIVER = "libcuda.so.1"
CALL = re.compile(r"\bcu[A-Z]\w*(?=\()")


class ShippedFirst(FileCacheManager):  # type: ignore[misc]
    """Triton's cache of files, where what came with the image is found first."""

    def get_file(self, filename: str) -> str | None:
        shipped = SHIPPED / self.key / filename
        return str(shipped) if shipped.exists() else super().get_file(filename)


def build(folder: Path) -> str:
    """Let Triton compile what it needs of C into `folder`, laid out as its cache; returns the file.

    Triton's key depends on whether there is a program `file`: both or neither, here and where the image runs.
    """
    with tempfile.TemporaryDirectory() as work:
        make_driver(Path(work))
        knobs.nvidia.libcuda_path, knobs.cache.dir = work, str(folder)
        return str(driver.CudaUtils().load_binary.__self__.__file__)


def make_driver(folder: Path) -> None:
    """A library with the name and the functions of the driver's, which comes with the card only."""
    source = Path(driver.dirname, "driver.c").read_text(encoding="utf-8")
    functions = "".join(f"void {name}(void) {{}}\n" for name in sorted(set(CALL.findall(source))))
    path = folder / DRIVER
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=functions.encode(), check=True)
    ctypes.CDLL(str(path))  # the loader knows it by its name from now on


if __name__ == "__main__":
    print(build(SHIPPED))
