"""Two thousand ways in which an adapter folder from a stranger may be wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server import adapter_folder, manifest
from server.adapter_files import CONFIG_FILE, PICKLE_FILES, WEIGHTS_FILE
from server.base_model import BaseModel
from server.errors import AdapterRefused
from server.store import Store
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import add_manifest

NUM_FOLDERS = 2000
CONFIGS = ("lora-patterns", "ia3-paper", "prefix", "bottleneck-houlsby", "bitfit", "head")
Header = dict[str, Any]


class Stranger:
    """A folder that was good, and what is done to it. Every change makes it one that must not be served."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.weights, self.config = folder / WEIGHTS_FILE, folder / CONFIG_FILE

    # the weights file

    def cut(self) -> None:
        content = self.weights.read_bytes()
        self.weights.write_bytes(content[: self.rng.randrange(len(content))])

    def extend(self) -> None:
        self.weights.write_bytes(self.weights.read_bytes() + self.rng.randbytes(self.rng.randint(1, 99)))

    def flip_a_weight(self) -> None:
        content = bytearray(self.weights.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        content[self.rng.randrange(start, len(content))] ^= 1 << self.rng.randrange(8)
        self.weights.write_bytes(content)

    def not_finite(self) -> None:
        content = bytearray(self.weights.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        at = start + 4 * self.rng.randrange((len(content) - start) // 4)
        content[at : at + 4] = self.rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\xa0\xff"))
        self._rewrite(bytes(content))

    def huge_header(self) -> None:
        content = self.weights.read_bytes()
        length = self.rng.choice((1 << 63, (1 << 64) - 1, 1 << 40, len(content), 0, 1))
        self._rewrite(length.to_bytes(8, "little") + content[8:])

    def noise_for_header(self) -> None:
        content = self.weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        self._rewrite(content[:8] + self.rng.randbytes(length) + content[8 + length :])

    def other_shape(self) -> None:
        def change(header: Header) -> None:
            tensor = header[self._tensor(header)]
            tensor["shape"] = self.rng.choice(
                ([*tensor["shape"], 1], [-1, -1], [1 << 40, 1 << 40], [], [0], [2.5], ["3"], [1] * 9, None, {}, [True])
            )

        self._change_header(change)

    def other_dtype(self) -> None:
        def change(header: Header) -> None:
            header[self._tensor(header)]["dtype"] = self.rng.choice(("I8", "F64", "BOOL", "F4", "", "f32", None, 3, []))

        self._change_header(change)

    def other_offsets(self) -> None:
        def change(header: Header) -> None:
            tensor = header[self._tensor(header)]
            start, stop = tensor["data_offsets"]
            tensor["data_offsets"] = self.rng.choice(
                ([start + 4, stop + 4], [stop, start], [-4, stop], [start, 1 << 62], [start], [start, stop, 0], "0",
                 None, [float(start), stop], [start, stop + 4])
            )  # fmt: skip

        self._change_header(change)

    def other_name(self) -> None:
        def change(header: Header) -> None:
            names = (
                "../../etc/passwd",
                "x" * 5000,
                "",
                "\ud800",
                "base_model.model.no.lora_A.weight",
                "__class__",
            )
            header[self.rng.choice(names) + str(self.rng.randrange(9))] = header.pop(self._tensor(header))

        self._change_header(change)

    def twice(self) -> None:
        content = self.weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length].decode().rstrip()
        name = self._tensor(json.loads(header))
        header = header[:-1] + f",{json.dumps(name)}:{json.dumps(json.loads(header)[name])}}}"
        self._rewrite(len(header).to_bytes(8, "little") + header.encode() + content[8 + length :])

    def deep_header(self) -> None:
        header = b"[" * self.rng.randint(10_000, 200_000)
        self._rewrite(len(header).to_bytes(8, "little") + header)

    def archive(self) -> None:
        """A small file that would unpack to a large one."""
        if self.rng.random() < 0.5:
            self.weights.write_bytes(gzip.compress(bytes(1 << 22)))
        else:
            with zipfile.ZipFile(self.weights, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("data.pkl", bytes(1 << 22))

    def endless(self) -> None:
        """Terabytes that no disk holds."""
        os.truncate(self.weights, 1 << self.rng.randint(33, 42))

    def pickle(self) -> None:
        self.weights.rename(self.folder / self.rng.choice(PICKLE_FILES))

    # what is in place of files

    def link_out(self) -> None:
        name = self.rng.choice((WEIGHTS_FILE, CONFIG_FILE, manifest.FILE_NAME))
        outside = self.folder.parent.parent / "outside"
        outside.mkdir(exist_ok=True)
        shutil.move(self.folder / name, outside / name)
        (self.folder / name).symlink_to(outside / name)

    def link_to_itself(self) -> None:
        self.weights.unlink()
        self.weights.symlink_to(self.weights.name)

    def no_file(self) -> None:
        path = self.folder / self.rng.choice((WEIGHTS_FILE, CONFIG_FILE, manifest.FILE_NAME))
        path.unlink()
        self.rng.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")))()

    def missing(self) -> None:
        (self.folder / self.rng.choice((WEIGHTS_FILE, CONFIG_FILE))).unlink()

    # what the files say

    def config_is_noise(self) -> None:
        deep = "[" * 100_000
        self.config.write_bytes(
            self.rng.choice((b"", b"{", b"[]", b"null", b"7", deep.encode(), b"\xff\xfe", self.rng.randbytes(200)))
        )

    def config_value(self) -> None:
        choices: dict[str, tuple[object, ...]] = {
            "peft_type": ("VERA", "PROMPT_TUNING", "ADALORA", "", None, 3, [], "../LORA"),
            "task_type": ("CAUSAL_LM", "TOKEN_CLS", 7, []),
        }
        name = self.rng.choice(list(choices))
        self._change_json(self.config, {name: self.rng.choice(choices[name])})

    def an_unknown_option(self) -> None:
        self._change_json(
            self.config, {f"use_{self.rng.randrange(1 << 30)}": self.rng.choice((True, 1, "x", {"a": 1}))}
        )

    def manifest_value(self) -> None:
        wrong: dict[str, tuple[object, ...]] = {
            "schema": (0, 2, "1", None),
            "method": ("none", "", None, 3),
            "labels": ([], ["a"], ["a", "a", "a"], [1, 2, 3], None, "abc", ["a", "b", ""], ["a"] * 20_000),
            "problem_type": ("two_labels", None, [], 4),
            "max_length": (0, -1, 1 << 60, 1.5, "9", None, True),
            "pooling": ("max", None, 1),
            "temperature": (0, -1, 1e99, "1", None, True),
            "base_name": ("", None, 7),
            "base_fingerprint": ("0" * 64, "x", None, 5),
            "weights_sha256": ("0" * 64, "x", None, 5),
            "positions": ("moved", None, 3),
            "threshold": (-0.1, 1.1, "0.5", None),
        }
        name = self.rng.choice(list(wrong))
        self._change_json(self.folder / manifest.FILE_NAME, {name: self.rng.choice(wrong[name])})

    def manifest_is_noise(self) -> None:
        (self.folder / manifest.FILE_NAME).write_bytes(
            self.rng.choice((b"", b"{", b"[]", b"\xff", b'{"schema": 1e999}', b"[" * 100_000, self.rng.randbytes(99)))
        )

    def _tensor(self, header: Header) -> str:
        return self.rng.choice([name for name in header if name != "__metadata__"])

    def _change_header(self, change: Callable[[Header], None]) -> None:
        content = self.weights.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        self._rewrite(len(text).to_bytes(8, "little") + text + content[8 + length :])

    def _rewrite(self, content: bytes) -> None:
        """Other weights, with a manifest that says that they are the right ones."""
        self.weights.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self._change_json(self.folder / manifest.FILE_NAME, {"weights_sha256": digest})

    def _change_json(self, path: Path, changes: dict[str, object]) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WAYS = [name for name in vars(Stranger) if not name.startswith("_")]


@pytest.fixture(scope="module")
def templates(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("templates")
    for seed, config in enumerate(CONFIGS):
        make_adapter(root / config, bert_base.folder, peft_configs("bert")[config], 3, seed=seed)
        add_manifest(root / config, bert_base, max_length=64)
    return sorted(root.iterdir())


def test_every_wrong_folder_is_refused_with_a_reason(
    templates: list[Path], bert_base: BaseModel, tmp_path: Path
) -> None:
    store, rng, reasons = Store(bert_base), random.Random(0), Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(NUM_FOLDERS):
        name, way = f"a{number}", WAYS[number % len(WAYS)]
        shutil.copytree(rng.choice(templates), tmp_path / "root" / name)
        getattr(Stranger(tmp_path / "root" / name, rng), way)()
        with pytest.raises(AdapterRefused) as caught:  # at once, or when its weights are read
            store.load(adapter_folder.read(tmp_path / "root", name, bert_base))
        reason = str(caught.value)
        assert 10 < len(reason) < 1000, (way, reason)
        assert str(tmp_path) not in reason, (way, reason)
        reasons[way] += 1
        shutil.rmtree(tmp_path / "root" / name)
    assert len(reasons) == len(WAYS) > 20
    assert store.stats().num_resident == store.stats().num_loads == 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 300 << 20


@pytest.mark.parametrize(
    "name", ["../good", "/etc", "..", ".", "", ".hidden", "a/b", "a\0b", "a b", "ä", "x" * 129, "-a"]
)
def test_no_name_leads_out_of_the_root(name: str, templates: list[Path], bert_base: BaseModel) -> None:
    with pytest.raises(AdapterRefused):
        adapter_folder.read(templates[0].parent, name, bert_base)
