"""Documents that are printed: they are fresh, whole and as long as they say, and their numbers follow from formulas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from statistics import fmean

import matplotlib.image
import numpy as np
import pytest
import torch
import typst
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from benchmarks import material
from decision.literature import chapters
from docs import figures, footprints, generate, papers, published
from docs.footprints import CANDIDATES, SHAPES, Candidate, Shape
from server.methods import methods
from tests.drawings import is_same_drawing
from training.options import options_of

DOCS = papers.DOCS
PAPERS = papers.papers()
MARGIN_CM = 1.6
"""White in print at the left and the right of every page: a little less than the margin that `paper.typ` sets."""
PIXELS_PER_INCH = 40
FRONT = "---\ntitle: A title\nauthor: [Somebody]\ndate: 2026-11-22\n{}---\n\n# One\n\n{}\n"


def paper_ids(path: Path) -> str:
    return path.stem


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def paper(text: str, front: str = "") -> Path:
        path = tmp_path / "paper.md"
        path.write_text(FRONT.format(front, text), encoding="utf-8")
        return path

    return paper


@pytest.mark.parametrize(("name", "pages"), [("survey", 6), ("decision-tree", 1), ("worked-example", None)])
def test_the_papers_are_printed_on_as_many_pages_as_they_must_have(name: str, pages: int | None) -> None:
    assert papers.pages_expected(DOCS / f"{name}.md") == pages
    assert DOCS / f"{name}.md" in PAPERS


@pytest.mark.parametrize("paper", PAPERS, ids=paper_ids)
def test_a_pdf_is_made_of_the_sources_that_are_there(paper: Path) -> None:
    assert papers.is_fresh(paper), "run `make docs`"


@pytest.mark.parametrize("paper", PAPERS, ids=paper_ids)
def test_a_paper_has_the_pages_that_it_must_have_and_the_same_bytes_each_time(paper: Path, tmp_path: Path) -> None:
    papers.build(paper, tmp_path / "first.pdf")  # raises if the pages are not those that are asked for
    papers.build(paper, tmp_path / "second.pdf")
    assert (tmp_path / "first.pdf").read_bytes() == (tmp_path / "second.pdf").read_bytes()


@pytest.mark.parametrize("paper", PAPERS, ids=paper_ids)
def test_nothing_stands_in_the_margins(paper: Path) -> None:
    width = round(MARGIN_CM / 2.54 * PIXELS_PER_INCH)
    for page in rendered(paper):
        assert page[:, :width].min() == page[:, -width:].min() == 1


@pytest.mark.parametrize("paper", [paper for paper in PAPERS if papers.pages_expected(paper)], ids=paper_ids)
def test_a_paper_of_so_many_pages_fills_its_last_one(paper: Path) -> None:
    page = rendered(paper)[-1]
    rows = np.flatnonzero(page[: round(0.92 * len(page))].min(axis=1) < 1)  # without the page's number
    assert rows[-1] > 0.7 * len(page)


@cache
def rendered(paper: Path) -> list[NDArray[np.float32]]:
    """Every page, [rows, columns]: 1 where it is white."""
    source = paper.parent / f".{paper.stem}-rendered.typ"
    source.write_text(papers.typst_source(paper), encoding="utf-8")
    try:
        pages = typst.compile(str(source), format="png", ppi=PIXELS_PER_INCH, ignore_system_fonts=True)
    finally:
        source.unlink()
    images = pages if isinstance(pages, list) else [pages]
    return [matplotlib.image.imread(BytesIO(page), format="png")[..., :3].min(axis=2) for page in images]


def cited(paper: Path) -> set[str]:
    return set(re.findall(r"(?<![\w@])@([a-z]\w+)(?![\w:])", paper.read_text(encoding="utf-8")))


def bibliography(paper: Path) -> Path | None:
    found = re.search(r"^bibliography: (.+)$", paper.read_text(encoding="utf-8"), re.MULTILINE)
    return paper.parent / found[1] if found else None


def entries(path: Path | None) -> list[str]:
    return [] if path is None else re.findall(r"^@\w+\{(\w+),$", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("paper", PAPERS, ids=paper_ids)
def test_every_reference_of_a_paper_is_in_its_bibliography(paper: Path) -> None:
    assert cited(paper) <= set(entries(bibliography(paper)))


def test_every_entry_of_a_bibliography_is_there_once_and_cited_by_a_paper() -> None:
    for path in {found for paper in PAPERS if (found := bibliography(paper))}:
        users = [paper for paper in PAPERS if bibliography(paper) == path]
        assert sorted(entries(path)) == sorted(set.union(*map(cited, users)))


def test_what_the_decision_says_from_literature_is_in_the_bibliography() -> None:
    named = {key for chapter in chapters().values() for reason in chapter.reasons for key in reason.sources}
    assert named <= set(entries(DOCS / "references.bib"))


def test_every_entry_says_who_what_when_and_where() -> None:
    for entry in (DOCS / "references.bib").read_text(encoding="utf-8").split("\n\n"):
        assert {"author", "title", "year", "url"} <= set(re.findall(r"^  (\w+) = \{", entry, re.MULTILINE)), entry


@pytest.mark.parametrize("paper", PAPERS, ids=paper_ids)
def test_every_table_and_figure_is_spoken_of(paper: Path) -> None:
    text = paper.read_text(encoding="utf-8")
    labels = set(re.findall(r"\{#((?:tbl|fig):\w+)", text))
    assert labels == set(re.findall(r"@((?:tbl|fig):\w+)", text))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_as_its_code_draws_it(name: str) -> None:
    kept = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert is_same_drawing(kept, figures.FIGURES[name]().decode()), "run `make docs`"


def test_a_part_that_is_stale_is_seen() -> None:
    text = (DOCS / "survey.md").read_text(encoding="utf-8")
    assert generate.refreshed(text.replace("73,728", "73,729")) == text


def test_a_change_of_the_document_or_of_what_it_shows_makes_its_pdf_stale(write: Callable[..., Path]) -> None:
    drawing = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><path d='M0 0L9 9' stroke='black'/></svg>"
    paper = write("![A line.](line.svg){#fig:line}\n\n[@fig:line] is straight.")
    (paper.parent / "line.svg").write_text(drawing)
    papers.build(paper, paper.with_suffix(".pdf"))
    assert papers.is_fresh(paper)
    (paper.parent / "line.svg").write_text(drawing.replace("9 9", "9 8"))
    assert not papers.is_fresh(paper)
    papers.build(paper, paper.with_suffix(".pdf"))
    paper.write_text(paper.read_text(encoding="utf-8") + "More.\n", encoding="utf-8")
    assert not papers.is_fresh(paper)


@pytest.mark.parametrize(
    ("text", "front", "complaint"),
    [
        ("Only one page.", "pages: 2\n", "has 1 pages, it must have 2"),
        ("A character that no font has: \U00012000.", "", "could not be displayed"),
        ("$$" + "x+" * 90 + "x$$", "columns: 2\n", "a formula on page 1 is wider than its column"),
        ("Nobody wrote this [@nobody1900].", "", "nobody1900"),
        ("See [@tbl:nowhere].", "", "nowhere"),
    ],
    ids=["pages", "character", "formula", "citation", "table"],
)
def test_a_paper_that_is_not_right_is_refused_and_not_written(
    write: Callable[..., Path], text: str, front: str, complaint: str
) -> None:
    paper = write(text, front)
    with pytest.raises(papers.PaperError, match=complaint):
        papers.build(paper, paper.with_suffix(".pdf"))
    assert not paper.with_suffix(".pdf").exists()


def value(formula: str, candidate: Candidate, shape: Shape) -> int:
    """What a formula of a table, as it is printed, comes to."""
    options = candidate.options(shape)
    letters: dict[str, float] = {"L": shape.L, "d": shape.d, "k": shape.d_kv, "f": shape.f, "g": shape.g}
    letters |= {"r": options.get("rank", 0), "m": options.get("size", 0), "p": options.get("length", 0)}
    plain = formula.strip("$").replace("d_{kv}", "k")
    product = re.sub(r"(?<=[\w)])(?=[A-Za-z(])", "*", plain)
    return int(eval(product, {"__builtins__": {}}, letters))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.title)
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.title)
def test_printed_formulas_give_the_printed_numbers(candidate: Candidate, shape: Shape) -> None:
    """The counts are those of the methods themselves, which `test_counts.py` compares with what peft trains."""
    count = value(candidate.formula, candidate, shape)
    assert count == footprints.num_parameters(candidate, shape)
    assert value(candidate.work, candidate, shape) == candidate.flops(shape)
    text = (DOCS / "survey.md").read_text(encoding="utf-8")
    [row, *_] = [line for line in text.splitlines() if line.startswith(f"| {candidate.title} | {candidate.formula} |")]
    assert f" {count:,} | {2**30 // (4 * count):,} |" in row


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.title)
def test_the_work_of_a_base_is_what_torch_counts(shape: Shape) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(shape.config(), attn_implementation="eager").eval()
        tokens = torch.zeros(1, footprints.NUM_TOKENS, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=tokens)
    pooler = 2 * shape.d**2 if shape.model_type == "bert" else 0
    counted = counter.get_total_flops() - pooler
    assert counted == pytest.approx(footprints.NUM_TOKENS * shape.flops_per_token, rel=1e-4)


def test_the_measured_adapters_are_those_that_the_table_names() -> None:
    minilm = SHAPES[0]
    for candidate in CANDIDATES:
        if candidate.measured:
            method = methods()[candidate.method]
            measured = options_of(method, material.OPTIONS.get(candidate.measured, {}))
            assert measured == options_of(method, candidate.options(minilm))


def test_what_the_survey_says_of_the_measured_times_holds() -> None:
    """ "In our packed engine the quartiles of all four overlap", "mixing costs no more than the slowest"."""
    ratios = json.loads(footprints.MEASURED.read_text(encoding="utf-8"))["ratios"]
    four = [ratios[f"{candidate.measured}_vs_base"] for candidate in CANDIDATES if candidate.measured]
    assert len(four) == 4
    assert max(one["low"] for one in four) <= min(one["high"] for one in four)
    assert ratios["mix_vs_base"]["median"] >= min(one["median"] for one in four)


@pytest.mark.parametrize(
    ("num_rows", "printed"),
    [
        (100, {"FT": 60.02, "BitFit": 48.64, "bottleneck": 58.24, "prefix": 47.99, "LoRA": 49.26}),
        (500, {"FT": 68.93, "BitFit": 60.30, "bottleneck": 68.02, "prefix": 67.32, "LoRA": 65.86}),
        (1000, {"FT": 71.93, "BitFit": 66.51, "bottleneck": 70.95, "prefix": 71.81, "LoRA": 72.28}),
    ],
)
def test_tables_by_task_have_the_means_that_unipelt_prints(num_rows: int, printed: dict[str, float]) -> None:
    means = {method: fmean(scores) for method, scores in published.UNIPELT[num_rows].items()}
    assert means == pytest.approx(printed, abs=0.011)


def test_tables_by_task_have_the_means_that_the_lora_paper_prints() -> None:
    means = {row: fmean(scores) for row, scores in published.LORA_PAPER.items()}
    assert means == pytest.approx({"FT": 86.4, "LoRA": 87.2, "AdptP 3M, large": 88.4, "LoRA, large": 88.6}, abs=0.06)


@pytest.mark.parametrize("accuracy", [accuracy for _, accuracy in published.GSM8K])
def test_intervals_are_scipys(accuracy: float) -> None:
    hits = round(accuracy / 100 * published.GSM8K_QUESTIONS)
    expected = binomtest(hits, published.GSM8K_QUESTIONS).proportion_ci(method="wilson")
    found = published.wilson(hits / published.GSM8K_QUESTIONS, published.GSM8K_QUESTIONS)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)
