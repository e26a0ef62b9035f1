"""The report of a load test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from decision.rows import LatencyRow, MemoryRow, Writer
from loadtest import finding, timeline
from loadtest.command import main
from loadtest.drawing import MOST_LINES
from loadtest.errors import LoadTestError
from loadtest.outcome import dimensions, parts_of, sections
from loadtest.report import page
from tests import loads

MOST_BYTES = 2_000_000
VOID = {"meta", "br"}
Rows = Sequence[LatencyRow | MemoryRow]


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.plots: list[set[str]] = []
        self.legends: list[int] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on")
            self.ids += [value or ""] if name == "id" else []
            self.addresses += [value or ""] if name in ("src", "href", "xlink:href") else []
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "svg":
            self.plots.append(set())
        elif tag in ("title", "desc") and "svg" in self._open:
            self.plots[-1].add(tag)
        elif tag == "ul":
            self.legends.append(0)
        elif tag == "li":
            self.legends[-1] += 1
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def cell(self, table: int, row: str, column: str) -> str:
        head, *rows = self.tables[table]
        return next(cells[head.index(column)] for cells in rows if cells[0] == row)


def made(rows: Rows, folders: Sequence[Path] = (), description: str = "") -> Page:
    """A page that keeps what all pages promise."""
    found = Page(page(rows, folders, description))
    assert len(found.text.encode()) < MOST_BYTES
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not {tag for tag in found.tags if tag == "style" and found.tags[tag] > 1}
    assert all(address.startswith("#") and address[1:] in found.ids for address in found.addresses)
    assert len(set(found.ids)) == len(found.ids)
    assert all(kinds == {"title", "desc"} for kinds in found.plots)
    assert found.tags["figure"] == found.tags["figcaption"]
    return found


def sentence(rows: Rows) -> str:
    (section,) = sections(rows, [])
    return finding.sentence(section)


def test_repeats_become_a_median_with_the_lowest_and_the_highest() -> None:
    rows = [
        loads.latency("a", repeat=repeat, throughput_per_s=rate) for repeat, rate in enumerate((90.0, 100.0, 130.0))
    ]
    found = made(rows)
    assert found.cell(0, "a", "requests/s") == "10090 to 130"
    assert found.cell(0, "a", "requests") == "1,200"


def test_the_rest_is_what_nobody_tells_of() -> None:
    row = loads.latency("a", latency_ms=loads.spread([20.0]), queue_ms=loads.spread([5.0]),
                        compute_ms=loads.spread([8.0]), tokenize_ms=loads.spread([1.0]),
                        send_delay_ms=loads.spread([2.0]))  # fmt: skip
    assert made([row]).cell(1, "a", "rest") == "4"
    silent = loads.latency("a", queue_ms=None, compute_ms=None, tokenize_ms=None)
    assert made([silent]).cell(1, "a", "rest") == "–"


def test_a_load_generator_that_is_late_itself_is_said() -> None:
    assert "sent requests late" not in made([loads.latency("a", 20.0)]).text
    late = made([loads.latency("a", 20.0, send_delay_ms=loads.spread([5.0]))])
    assert "by more than 10% of the latency, in a: give it more cores" in late.text


def test_the_page_says_where_the_figures_come_from() -> None:
    text = made([loads.latency("a"), *loads.memory("a")], description="Does it work?").text
    for fact in ("Does it work?", "made-up", "AMD EPYC, 2 cores", "torch 2.13.0", "0123456789ab",
                 "2026-11-22 09:00 UTC", loads.COMMAND, "MiniLM", "bfloat16", "cpu", "random"):  # fmt: skip
        assert fact in text


def test_the_finding_names_the_fastest_and_the_slowest_case() -> None:
    rows = [loads.latency(case, throughput_per_s=rate) for case, rate in {"a": 100.0, "b": 300.0, "c": 200.0}.items()]
    assert sentence(rows) == (
        "Fastest is b (300 requests/s), slowest a (100 requests/s), 3 times apart; none of 1,200 requests failed."
    )


def test_no_case_stands_out_where_repeats_overlap() -> None:
    rates = {("a", 0): 100.0, ("a", 1): 120.0, ("b", 0): 105.0, ("b", 1): 125.0}
    rows = [loads.latency(case, repeat=repeat, throughput_per_s=rate) for (case, repeat), rate in rates.items()]
    expected = "No case stands out: the repeats of b (115 requests/s) and a (110 requests/s) overlap; none of 1,600"
    assert sentence(rows).startswith(expected)


def test_open_loops_are_compared_by_latency() -> None:
    rows = [loads.latency("quick", 10.0, rate_per_s=50.0), loads.latency("slow", 40.0, rate_per_s=50.0)]
    assert re.match(
        r"Lowest is quick \(p95 [\d.]+ ms\), highest slow \(p95 [\d.]+ ms\), 3.65 times apart;", sentence(rows)
    )


def test_the_finding_of_a_search_is_the_highest_rate_within_the_limit() -> None:
    rows = list(loads.capacity({"lora": 200.0, "ia3": 400.0, "prefix": 50.0}, repeats=2))
    assert sentence(rows) == (
        "With a 95th percentile of at most 50 ms, ia3 takes the most, 226 requests/s, lora the least, 80; "
        "prefix met the limit of 50 ms at no rate that was tried; none of 47,178 requests failed."
    )
    found = made(rows)
    assert found.cell(0, "ia3", "requests/s") == "226"
    assert found.cell(0, "prefix", "requests/s") == "none that was tried"
    assert found.cell(1, "ia3, 226.3/s", "within limit") == "yes"
    assert found.cell(1, "ia3, 320/s", "within limit") == "no"
    assert "Latency against the rate of requests" in found.text


def test_a_long_run_says_what_memory_grew_by_and_a_short_one_does_not() -> None:
    memory = loads.memory("all", growth_bytes_per_h=3.2 * loads.MIB)
    long = loads.latency("all", rate_per_s=60.0, duration_s=1800.0)
    assert "resident memory grew by 3.2 MiB an hour, over the second half of the run" in sentence([long, *memory])
    assert "memory" not in sentence([loads.latency("all", rate_per_s=60.0), *memory])


def test_errors_are_told_by_kind() -> None:
    rows = [
        loads.latency("a", repeat=repeat, num_errors=3, errors={"timeout": 2, "overloaded": 1}) for repeat in (0, 1)
    ]
    assert sentence(rows).endswith("6 of 800 requests failed (4 × timeout, 2 × overloaded).")
    assert made(rows).cell(0, "a", "errors") == "4 × timeout, 2 × overloaded"


def test_a_service_that_answers_nothing_has_a_page() -> None:
    dead = loads.latency("a", latency_ms=None, queue_ms=None, compute_ms=None, tokenize_ms=None, send_delay_ms=None,
                         batch={}, throughput_per_s=0.0, texts_per_s=0.0, num_errors=400,
                         errors={"ConnectionError": 400})  # fmt: skip
    assert sentence([dead]) == "No request was answered; 400 of 400 requests failed (400 × ConnectionError)."
    assert made([dead]).cell(0, "a", "p95, ms") == "–"
    assert sentence([dead, loads.latency("b")]).startswith("Nothing was answered in a, ")
    made([dead, loads.latency("b"), *loads.memory("b")])


@pytest.mark.parametrize("rows", [[], loads.memory("a"), [loads.latency("a")]], ids=["none", "memory", "latency"])
def test_rows_of_one_kind_or_none_have_a_page(rows: Rows) -> None:
    made(rows)


def test_names_are_shown_as_they_are() -> None:
    name = "<b>x</b> & \"y\" 'é' ☃ 日本 $a$ $\\frac"
    rows = [loads.latency(case, scenario=name, target=name, num_errors=1, errors={name: 1}) for case in (name, "b")]
    rows.append(loads.latency(name, scenario=name, part="the first adapter", target=name))
    found = made(rows, description=name)
    assert found.cell(0, name, "errors") == f"1 × {name}"
    assert "<b>" not in found.text


def test_thirty_cases_are_told_apart_by_what_is_varied() -> None:
    found = made(list(loads.methods()))
    assert len(found.tables[0]) == 31
    assert max(found.legends) <= MOST_LINES
    assert found.text.count("<p>float32, num_hot 64</p>") == 1  # the distribution: a panel with a line each method
    assert found.text.count("<p>float32</p>") == 1  # throughput against the number of hot adapters


def test_cases_without_any_pattern_have_panels_of_their_own() -> None:
    found = made([loads.latency(", ".join("x" * index)) for index in range(1, 13)])
    assert max(found.legends) == 3  # what a batch holds
    assert found.text.count("<p>x, x</p>") == 1


def test_what_is_varied_is_read_from_the_names_of_cases() -> None:
    names = ["float32, num_hot 1", "float32, num_hot 8", "bfloat16, num_hot 1"]
    kinds, hot = dimensions([parts_of(name) for name in names])
    assert (kinds.values, kinds.name) == (("float32", "bfloat16"), "")
    assert (hot.name, [hot.number(value) for value in hot.values]) == ("num_hot", [1.0, 8.0])
    assert dimensions([parts_of("num_hot 1, a"), parts_of("num_hot 2")]) == []
    assert [one.name for one in dimensions([("num_users 4",), ("rate_per_s 4",)])] == [""]


def test_other_targets_and_other_machines_have_sections_of_their_own() -> None:
    ours = loads.latency("mix", target="adaptermux")
    elsewhere = ours.model_copy(update={"provenance": ours.provenance.model_copy(update={"machine": "H100"})})
    rows = [ours, loads.latency("mix", target="infinity"), loads.latency("mix", repeat=1), elsewhere]
    found = sections(rows, [])
    assert [(one.target, len(one.rows)) for one in found] == [("adaptermux", 2), ("infinity", 1), ("adaptermux", 1)]
    assert made(rows).tags["section"] == 3


def test_half_an_hour_of_samples_is_thinned_and_shows_what_failed(tmp_path: Path) -> None:
    loads.write_samples(tmp_path, "all", seconds=1800.0, errors={"timeout": 0.001})
    rows: Rows = [loads.latency("all", rate_per_s=60.0, duration_s=1800.0), *loads.memory("all")]
    found = made(rows, [tmp_path])
    assert len(found.text) < 100_000
    for shown in ("<h3>Latency over time</h3>", "<h3>Memory over time</h3>", "✕</span> failed"):
        assert shown in found.text
    assert re.search(r"Latency over time, all; \d+ failed", found.text)


def test_samples_of_other_commands_and_cases_are_left_out(tmp_path: Path) -> None:
    loads.write_samples(tmp_path, "b")
    assert "Latency over time" not in made([loads.latency("a")], [tmp_path]).text
    other = loads.latency("b", provenance=loads.latency("b").provenance.model_copy(update={"command": "another"}))
    assert "Raw samples of these cases were not given" in made([other], [tmp_path]).text


def test_a_page_without_samples_says_so() -> None:
    found = made([loads.latency("a")])
    assert "Raw samples of these cases were not given" in found.text
    assert "Latency as a distribution" in found.text  # from the percentiles in the rows


def test_a_run_that_was_killed_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    loads.write_samples(tmp_path, "a")
    loads.write_samples(tmp_path, "b", number=2)
    (tmp_path / "samples" / "002-0" / timeline.FILE).unlink()
    assert [run.timeline.case for run in timeline.read([tmp_path])] == ["a"]
    cut = tmp_path / "samples" / "001-0" / timeline.FILE
    cut.write_text(cut.read_text(encoding="utf-8")[:50], encoding="utf-8")
    with pytest.raises(LoadTestError, match=r"001-0/timeline.json` or the samples beside it cannot be read"):
        page([loads.latency("a")], [tmp_path], "")


def test_the_command_makes_a_page_from_rows_alone(tmp_path: Path) -> None:
    with Writer(tmp_path / "rows.jsonl") as writer:
        writer.write(loads.latency("a"))
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "rows.jsonl"), "--output", str(output)]) == 0
    assert Page(output.read_text(encoding="utf-8")).cell(0, "a", "requests") == "400"


def test_a_run_of_which_every_request_failed_shows_when(tmp_path: Path) -> None:
    loads.write_samples(tmp_path, "a", seconds=30.0, errors={"timeout": 1.0})
    row = loads.latency("a", rate_per_s=60.0, latency_ms=None, num_errors=400, errors={"timeout": 400})
    assert "Latency over time, a; 1800 failed" in made([row], [tmp_path]).text


def test_cases_with_and_without_a_limit_stand_on_one_page() -> None:
    rows = [*loads.capacity({"searched": 200.0}), loads.latency("steady", rate_per_s=50.0)]
    assert sentence(rows).startswith("With a 95th percentile of at most 50 ms, the service takes 80 requests/s; ")
    assert made(rows).cell(1, "steady", "within limit") == "–"
