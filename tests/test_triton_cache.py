"""What an image has compiled for Triton is found where there is no compiler, and no place to run programs from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs gcc and Python's headers",
)
BUILD = """
import sys
from pathlib import Path
from server import triton_cache
triton_cache.make_driver(Path(sys.argv[1]))
print(triton_cache.build(Path(sys.argv[2])))
"""
LOAD = """
import sys
from pathlib import Path
from server import triton_cache
triton_cache.SHIPPED = Path(sys.argv[1])
from triton.backends.nvidia.driver import CudaUtils
print(CudaUtils().load_binary.__self__.__file__)
"""


def run(code: str, *arguments: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=variables | {key: str(value) for key, value in environment.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A library that passes for the driver's, what an image brings along, and the file of it."""
    driver, shipped = tmp_path_factory.mktemp("driver"), tmp_path_factory.mktemp("compiled")
    done = run(BUILD, driver, shipped)
    assert done.returncode == 0, done.stderr
    return driver, shipped, Path(done.stdout.strip())


@pytest.mark.parametrize("is_shipped", [True, False])
def test_the_module_that_an_image_brings_along_needs_no_compiler(
    places: tuple[Path, Path, Path], is_shipped: bool, tmp_path: Path
) -> None:
    driver, shipped, module = places
    programs = tmp_path / "bin"
    programs.mkdir()
    if kind := shutil.which("file"):  # what it says of Python is a part of Triton's key
        (programs / "file").symlink_to(kind)
    done = run(
        LOAD,
        shipped if is_shipped else tmp_path,
        PATH=programs,
        LD_LIBRARY_PATH=driver,
        TRITON_LIBCUDA_PATH="/usr/lib",
        TRITON_CACHE_DIR=tmp_path / "cache",
        TRITON_CACHE_MANAGER="server.triton_cache:ShippedFirst",
    )
    if is_shipped:
        assert (done.returncode, done.stdout.strip()) == (0, str(module)), done.stderr
        assert module.is_relative_to(shipped)
    else:
        assert done.returncode == 1
        assert "Failed to find C compiler" in done.stderr


def test_what_is_compiled_later_is_found_too(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    driver, _, _ = places
    environment = {
        "LD_LIBRARY_PATH": driver,
        "TRITON_LIBCUDA_PATH": driver,
        "TRITON_CACHE_DIR": tmp_path / "cache",
        "TRITON_CACHE_MANAGER": "server.triton_cache:ShippedFirst",
    }
    made = [run(LOAD, tmp_path, **environment) for _ in range(2)]
    assert [done.returncode for done in made] == [0, 0], made
    assert {Path(done.stdout.strip()).parent.parent for done in made} == {tmp_path / "cache"}
