"""Where a measurement comes from is told so that two machines of one name are told apart."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from decision import provenance


@pytest.mark.parametrize(
    ("flags", "told"),
    [("fpu avx2 avx512f avx512_bf16 amx_bf16", " with AMX"), ("fpu avx2 avx512f", " with AVX-512"), ("fpu", "")],
)
def test_a_processor_is_named_with_its_widest_instructions(
    flags: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"processor\t: 0\nmodel name\t: A Processor\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: Another\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr(sys, "platform", "linux")
    assert provenance._processor() == f"A Processor{told}"
