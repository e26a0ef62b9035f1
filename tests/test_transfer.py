"""`adaptermux-train push` and `pull`: what arrives is what was sent, or nothing arrives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from server import manifest as manifest_format
from tests.buckets import CONFIG, LIMIT_S, MANIFEST, WEIGHTS, FaultyStore, make_bucket, moto, use_endpoint
from tests.hubs import COMMIT, Hub
from tests.test_model_card import manifest_of
from training import command
from training.model_card import model_card
from training.transfer import ORDER

ROOT = Path(__file__).parent.parent
CARD = "README.md"


def make_adapter(folder: Path, seed: int = 0) -> Path:
    """A folder as `run` writes it, around weights that stand for any."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({"base_model.model.classifier.weight": torch.randn(3, 4, generator=generator)}, folder / WEIGHTS)
    (folder / CONFIG).write_text(f'{{"peft_type": "LORA", "lora_alpha": {seed}}}')
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    manifest = replace(manifest_of("single_label"), weights_sha256=digest)
    manifest_format.write(manifest, folder)
    (folder / CARD).write_text(model_card(manifest, folder.name), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train(*arguments: object) -> int:
    return command.main([*map(str, arguments)])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "mine" / "reviews")


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    use_endpoint(monkeypatch, s3_url)
    make_bucket("adapters")
    return f"s3://adapters/{tmp_path.name}"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    store = FaultyStore({})
    use_endpoint(monkeypatch, store.url)
    yield store
    store.close()


def test_what_is_pulled_from_a_bucket_is_what_was_pushed(
    adapter: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("push", adapter, f"{bucket}/team one/reviews") == 0
    out = capsys.readouterr().out
    assert f"is at {bucket}/team one/reviews" in out
    assert hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest() in out
    assert train("pull", f"{bucket}/team one/reviews", "--output", tmp_path / "got" / "reviews") == 0
    assert contents(tmp_path / "got" / "reviews") == contents(adapter)
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["reviews"]


def test_what_is_pulled_from_a_folder_is_what_was_pushed_and_names_may_be_relative(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("push", "mine/reviews", "file:shared/reviews") == 0
    assert train("pull", f"file:{tmp_path}/shared/reviews", "--output", "got/reviews") == 0
    assert contents(tmp_path / "got" / "reviews") == contents(tmp_path / "shared" / "reviews") == contents(adapter)


def test_nothing_else_that_lies_in_the_folder_is_pushed(adapter: Path, tmp_path: Path) -> None:
    (adapter / "optimizer.pt").write_bytes(b"")
    (adapter / "secret.env").write_text("TOKEN=1")
    assert train("push", adapter, f"file:{tmp_path}/there") == 0
    assert set(contents(tmp_path / "there")) == set(ORDER)


@pytest.mark.parametrize("num_files", range(len(ORDER)))
def test_a_push_that_ends_half_way_is_not_taken_for_an_adapter(
    num_files: int, store: FaultyStore, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_later(method: str, key: str) -> int | None:
        puts = [request for request in store.requests if request.startswith("PUT")]
        return 403 if method == "PUT" and len(puts) > num_files else None

    store.before = refuse_later
    assert train("push", adapter, "s3://bucket/a/reviews") == 1
    assert "may not be written" in capsys.readouterr().err
    assert len(store.objects) == num_files
    assert train("pull", "s3://bucket/a/reviews", "--output", tmp_path / "got") == 1
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("num_files", range(1, len(ORDER)))
def test_a_push_over_an_older_adapter_that_ends_half_way_gives_no_mix(
    num_files: int, store: FaultyStore, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = make_adapter(tmp_path / "older" / "reviews", seed=1)
    assert train("push", older, "s3://bucket/a/reviews") == 0
    store.requests.clear()

    def refuse_later(method: str, key: str) -> int | None:
        puts = [request for request in store.requests if request.startswith("PUT")]
        return 403 if method == "PUT" and len(puts) > num_files else None

    store.before = refuse_later
    assert train("push", adapter, "s3://bucket/a/reviews", "--overwrite") == 1
    assert train("pull", "s3://bucket/a/reviews", "--output", tmp_path / "got") == 1
    assert "it was to be" in capsys.readouterr().err
    assert not (tmp_path / "got").exists()


def test_an_adapter_that_lies_there_is_kept_unless_told(
    adapter: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_adapter(tmp_path / "other" / "reviews", seed=1)
    for place in (f"{bucket}/reviews", f"file:{tmp_path}/there"):
        assert train("push", adapter, place) == 0
        assert train("push", other, place) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert train("pull", place, "--output", tmp_path / "got", "--overwrite") == 0
        assert contents(tmp_path / "got")[WEIGHTS] == contents(adapter)[WEIGHTS]
        assert train("push", other, place, "--overwrite") == 0
        assert train("pull", place, "--output", tmp_path / "got", "--overwrite") == 0
        assert contents(tmp_path / "got")[CONFIG] == contents(other)[CONFIG]


def test_weights_that_changed_on_the_way_are_refused_and_what_was_there_stays(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("push", adapter, f"file:{tmp_path}/there") == 0
    assert train("pull", f"file:{tmp_path}/there", "--output", tmp_path / "got") == 0
    weights = tmp_path / "there" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert train("pull", f"file:{tmp_path}/there", "--output", tmp_path / "got", "--overwrite") == 1
    assert "it was to be" in capsys.readouterr().err
    assert contents(tmp_path / "got")[WEIGHTS] == contents(adapter)[WEIGHTS]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "no adapter.json"),
        (lambda folder: (folder / "adapter_model.bin").touch(), "pickle"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]), "header says"),
        (lambda folder: (folder / CONFIG).write_text("{"), CONFIG),
    ],
)
def test_a_folder_that_is_no_whole_adapter_is_not_pushed(
    spoil: object, words: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spoil)
    spoil(adapter)
    assert train("push", adapter, f"file:{tmp_path}/there") == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("place", ["there", "ftp://host/a", "s3://bucket", "hf:name", "file:"])
def test_a_place_that_is_none_is_told_with_what_there_is(
    place: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("push", adapter, place) == 1
    assert train("pull", place, "--output", tmp_path / "got") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "Traceback" not in error


def test_an_output_that_the_server_would_not_serve_is_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("pull", f"file:{adapter}", "--output", tmp_path / "my adapter") == 1
    assert "no adapter name" in capsys.readouterr().err


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({})
    yield hub
    hub.close()


def through_hub(hub: Hub, home: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, as the library reads its variables when it is imported."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_SECRETTOKEN",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "training", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | settings | variables,
        timeout=LIMIT_S,
    )


def test_a_hub_gets_a_private_model_in_one_commit_and_gives_it_back(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    done = through_hub(hub, tmp_path / "home", "push", adapter, "hf:me/reviews")
    assert done.returncode == 0, done.stderr
    assert f"is at hf:me/reviews@{COMMIT}" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
    assert hub.private is True
    assert hub.tokens == {"Bearer hf_SECRETTOKEN"}
    assert hub.files == contents(adapter)
    done = through_hub(hub, tmp_path / "home", "pull", "hf:me/reviews", "--output", tmp_path / "reviews")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "reviews") == contents(adapter)


def test_a_hub_model_is_public_only_when_told(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    assert through_hub(hub, tmp_path / "home", "push", adapter, "hf:me/reviews", "--public").returncode == 0
    assert hub.private is False


@pytest.mark.parametrize(
    ("status", "variables", "words"),
    [
        (403, {}, "hf auth login"),
        (500, {}, "answered 500"),
        (200, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (200, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError; nothing was committed"),
    ],
)
def test_a_hub_that_does_not_take_it_is_told_in_a_sentence(
    status: int, variables: dict[str, str], words: str, hub: Hub, adapter: Path, tmp_path: Path
) -> None:
    hub.status = status
    done = through_hub(hub, tmp_path / "home", "push", adapter, "hf:me/reviews", **variables)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "SECRET" not in done.stderr
