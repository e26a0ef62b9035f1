"""Documents keep their promises: names exist, generated parts are fresh, commands are real."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from decision.command import make_parser as make_decide_parser
from docs import generate
from loadtest.command import make_parser as make_loadtest_parser
from server.command import parse as parse_serve
from server.metrics import Metrics
from training.command import make_parser as make_train_parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "training").rglob("*.md")])


def resolve(name: str) -> object:
    """The object behind a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def names_in(path: Path) -> list[str]:
    return re.findall(r"`((?:server|training|decision|loadtest)(?:\.\w+)+)`", path.read_text(encoding="utf-8"))


def test_the_life_of_a_request_names_functions_that_exist() -> None:
    names = names_in(ROOT / "docs" / "architecture.md")
    assert len(names) > 25
    for name in names:
        resolve(name)


def test_a_name_that_does_not_exist_would_be_seen() -> None:
    with pytest.raises(AttributeError):
        resolve("server.engine.ThreadEngine.submitt")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_parts_are_fresh(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert generate.refreshed(text) == text, "run `make docs`"


def test_every_metric_that_prometheus_is_given_stands_in_the_operations_guide() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    families = list(Metrics(top_adapters=0).registry.collect())
    assert len(families) > 15
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` | {family.type} |" in text


def test_every_metric_and_setting_stands_in_the_operations_guide() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = list(generate.metric_rows())
    assert len(rows) > 10
    assert all(f"`{name}`" in text for name, *_ in rows)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_make_targets_and_flags_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    named = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line.strip()
            for path in DOCUMENTS
            for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
            for line in block.splitlines()
            if line.startswith("adaptermux-")
        }
    ),
)
def test_commands_in_the_documents_parse(line: str) -> None:
    name, *arguments = shlex.split(line)
    if name == "adaptermux-serve":
        parse_serve(arguments)
    else:
        parsers = {
            "adaptermux-train": make_train_parser,
            "adaptermux-loadtest": make_loadtest_parser,
            "adaptermux-decide": make_decide_parser,
        }
        parsers[name]().parse_args(arguments)


def test_the_folder_of_a_data_set_in_the_readme_has_its_sizes() -> None:
    table = (ROOT / "training" / "data" / "README.md").read_text(encoding="utf-8")
    for name in ("device_reviews", "support_tickets"):
        [row] = [line for line in table.splitlines() if line.startswith(f"| `{name}`")]
        sizes = [int(cell.replace(",", "")) for cell in re.findall(r"\| ([\d,]+) (?=\|)", row)]
        for split, size in zip(("train", "test"), sizes[-2:], strict=True):
            lines = (ROOT / "training" / "data" / name / f"{split}.csv").read_text(encoding="utf-8").splitlines()
            assert len(lines) - 1 == size
