"""`adaptermux-serve fetch-base`: a base model arrives whole and checked, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.base_model import BaseModel, fingerprint
from server.command import main
from tests.buckets import make_bucket, moto, put, use_endpoint


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def source(store: str, bert_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> str:
    use_endpoint(monkeypatch, store)
    make_bucket("models")
    for path in bert_base.folder.iterdir():
        put("s3://models", f"bases/tiny/{path.name}", path.read_bytes())
    put("s3://models", "bases/tiny/evil.py", b"print('never')")
    return "s3://models/bases/tiny"


def test_a_base_model_is_fetched_from_a_bucket_and_checked(source: str, bert_base: BaseModel, tmp_path: Path) -> None:
    into = tmp_path / "models" / "tiny"
    command = ["fetch-base", source, "--into", str(into), "--sha256", bert_base.fingerprint]
    assert main(command) == 0
    assert fingerprint(into) == bert_base.fingerprint
    assert not (into / "evil.py").exists()
    before = {path: path.stat().st_mtime_ns for path in into.iterdir()}
    assert main(command) == 0  # it is there already
    assert {path: path.stat().st_mtime_ns for path in into.iterdir()} == before


def test_another_base_model_than_was_asked_for_leaves_nothing(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "models" / "tiny"
    assert main(["fetch-base", source, "--into", str(into), "--sha256", "0" * 64]) == 1
    assert "is it another one?" in capsys.readouterr().err
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        (["ftp://models", "--sha256", "0" * 64], "must be s3://bucket/prefix", 2),
        (["s3://models/x", "--sha256", "ABC"], "64 hexadecimal digits", 2),
    ],
)
def test_what_cannot_be_a_source_or_a_digest_is_refused(
    given: list[str], message: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch-base", *given, "--into", str(tmp_path / "tiny")]) == code
    assert message in capsys.readouterr().err


def test_a_folder_with_another_base_model_is_not_written_over(
    bert_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch-base", "s3://models/x", "--into", str(bert_base.folder), "--sha256", "0" * 64]) == 1
    assert bert_base.fingerprint in capsys.readouterr().err
