"""The report of a load test: one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path

from decision.rows import LatencyRow, MemoryRow, Spread
from loadtest import plots, timeline
from loadtest.drawing import SIGNS, Plots
from loadtest.finding import best_rates, sentence, short
from loadtest.outcome import Across, Held, Outcome, Section, across, sections

NOTHING = "–"
MOST_LATE = 0.1
"""Of a latency that may be the load generator's own."""
MIB = 2**20
STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --faint: #5c5c62; --page: #ffffff; --edge: #d8d8dc; --grid: #e4e4e4;
  --bad: #c01c28; --line-0: #0072b2; --line-1: #c04f00; --line-2: #00805c; --line-3: #b8578f; --line-4: #b27a00;
  --line-5: #2b8fc7; --line-6: #7a5195; --line-7: #8c6d31; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #ececf0; --faint: #a5a5ad; --page: #17171a;
  --edge: #3a3a40; --grid: #34343a; --bad: #ff6b6b; --line-0: #4aa8e0; --line-1: #f28a45; --line-2: #2fc79a;
  --line-3: #e3a0c8; --line-4: #f0b93a; --line-5: #8fd0f5; --line-6: #b795d4; --line-7: #c9a664; } }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink); background: var(--page);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; } h3 { margin: 2rem 0 .5rem; }
.finding { font-size: 1.15rem; border-left: .25rem solid var(--line-0); padding-left: .8rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.note, figcaption { margin: 0; color: var(--faint); font-size: .875rem; padding: .3rem 0; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--edge); vertical-align: top; }
td { white-space: nowrap; } thead th { vertical-align: bottom; font-weight: 600; }
th:first-child { text-align: left; min-width: 13rem; } tbody th { font-weight: 400; }
td small { display: block; color: var(--faint); } td.names { white-space: normal; text-align: left; }
.bad { color: var(--bad); }
figure { margin: 0; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
.panels > div { max-width: 34rem; break-inside: avoid; min-width: 0; } .panels p { margin: 0; font-size: .875rem;
  font-weight: 600; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; } svg * { stroke-linejoin: round; stroke-linecap: butt; }
ul.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; list-style: none; padding: 0; margin: .3rem 0;
  font-size: .875rem; break-after: avoid; }
@media print { body { max-width: none; padding: 0; font-size: .85rem; } .wide { overflow: visible; }
  table { font-size: .68rem; } th, td { padding: .15rem .3rem; } tr, .panels > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .panels { grid-template-columns: repeat(2, 1fr); } }
"""


def page(rows: Sequence[LatencyRow | MemoryRow], folders: Sequence[Path], description: str) -> str:
    """Everything in one file, plots included. folders: of runs, whose raw samples give latency over time.

    Raises LoadTestError where a folder cannot be read.
    """
    found = sections(rows, timeline.read(folders))
    scenarios = ", ".join(dict.fromkeys(section.scenario for section in found)) or "no rows"
    numbers = count()
    body = [f"<h1>Load test: {escape(scenarios)}</h1>"]
    body += [f"<p>{escape(description)}</p>"] if description else []
    if len(found) > 1:
        named = [
            f'<li><a href="#section-{place}">{_name(section)}</a>: {escape(sentence(section))}</li>'
            for place, section in enumerate(found)
        ]
        body.append(f"<ul>{''.join(named)}</ul>")
    if not found:
        body.append("<p>There are no rows of a load test here.</p>")
    for place, section in enumerate(found):
        body += [f'<section id="section-{place}">', *_section(section, numbers, len(found) > 1), "</section>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Load test: {escape(scenarios)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _name(section: Section) -> str:
    return f"{escape(section.scenario)}, {escape(section.target)}"


def _section(section: Section, numbers: Iterator[int], is_named: bool) -> list[str]:
    parts = [f"<h2>{_name(section)}</h2>"] if is_named else []
    parts += [f'<p class="finding">{escape(sentence(section))}</p>', _provenance(section)]
    if section.outcomes:
        parts += ["<h3>Cases</h3>", _best(section) if section.is_search else "", _speed(section.outcomes)]
        parts += ["<h3>Where the time went</h3>", _time(section.outcomes), _late(section.outcomes)]
    if section.outcomes and not section.runs:
        parts.append("<p>Raw samples of these cases were not given, so latency over time is left out, and the "
                     "distribution is drawn from the percentiles in the rows.</p>")  # fmt: skip
    parts += [_figure(drawn, numbers) for drawn in plots.all_of(section)]
    if section.memories:
        parts += ["<h3>Memory by tier</h3>", _memory(section.memories)]
    return [part for part in parts if part]


def _figure(drawn: Plots, numbers: Iterator[int]) -> str:
    legend = [
        f'<li><span aria-hidden="true" style="color: var(--line-{place})">{SIGNS[place]}</span> {escape(name)}</li>'
        for place, name in enumerate(drawn.legend)
    ]
    legend += ['<li><span aria-hidden="true" class="bad">✕</span> failed</li>'] if drawn.has_failures else []
    images = []
    for image in drawn.images:
        title = f"<p>{escape(image.title)}</p>" if image.title else ""
        images.append(f"<div>{title}{_with_own_ids(image.svg, next(numbers))}</div>")
    return (
        f"<h3>{escape(drawn.title)}</h3><figure>"
        + (f'<ul class="legend">{"".join(legend)}</ul>' if legend else "")
        + f'<div class="panels">{"".join(images)}</div><figcaption>{escape(drawn.caption)}</figcaption></figure>'
    )


def _provenance(section: Section) -> str:
    made = section.first.provenance
    rows = section.rows
    dates = sorted({row.provenance.created[:16].replace("T", " ") + " UTC" for row in rows})
    facts = {
        "scenario": section.scenario,
        "target": section.target,
        "base model": section.first.base,
        "dtype": ", ".join(dict.fromkeys(row.dtype for row in rows)),
        "device": ", ".join(dict.fromkeys(row.device for row in rows)),
        "adapters' weights": "random" if section.first.has_random_weights else "trained",
        "machine": made.machine,
        "commit": made.commit,
        "date": " to ".join(dates if len(dates) == 1 else (dates[0], dates[-1])),
        "command": made.command,
        "versions": ", ".join(f"{name} {version}" for name, version in made.versions.items()),
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items()) + "</dl>"


def _best(section: Section) -> str:
    rows = [[case, _shown(figure) if figure else "none that was tried"] for case, figure in best_rates(section).items()]
    return _table("The highest rate within the limit.", ("case", "requests/s"), rows)


def _speed(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for one in outcomes:
        verdict = [("yes" if one.holds else "no") if one.is_tried else NOTHING]
        rows.append([
            one.name,
            _asked(one.first),
            *(_shown(one.figure(of)) for of in (lambda row: row.throughput_per_s, lambda row: row.texts_per_s)),
            *(_shown(_latency(one, name)) for name in ("p50", "p95", "p99")),
            *(verdict if any(other.is_tried for other in outcomes) else ()),
            f"{sum(row.num_requests for row in one.rows):,}",
            _errors(one),
        ])  # fmt: skip
    head: tuple[str, ...] = ("case", "asked", "requests/s", "texts/s", "p50, ms", "p95, ms", "p99, ms")
    head += ("within limit",) if any(one.is_tried for one in outcomes) else ()
    caption = "Medians over repeats, lowest and highest below; requests and errors of all repeats together."
    return _table(caption, (*head, "requests", "errors"), rows)


def _asked(row: LatencyRow) -> str:
    if row.rate_per_s is not None:
        return f"{short(row.rate_per_s)}/s"
    return NOTHING if row.num_users is None else f"{row.num_users:,} users"


def _time(outcomes: Sequence[Outcome]) -> str:
    parts: dict[str, Callable[[LatencyRow], float | None]] = {
        "latency": lambda row: _mean(row.latency_ms),
        "sent late": lambda row: _mean(row.send_delay_ms),
        "queue": lambda row: _mean(row.queue_ms),
        "compute": lambda row: _mean(row.compute_ms),
        "tokenise": lambda row: _mean(row.tokenize_ms),
        "rest": _rest,
        "texts a batch": lambda row: row.batch.get("texts"),
        "adapters a batch": lambda row: row.batch.get("adapters"),
        "methods a batch": lambda row: row.batch.get("methods"),
        "server, cores": lambda row: None if row.server_cpu_s is None else row.server_cpu_s / row.duration_s,
    }
    rows = [[one.name, *(_shown(one.figure(of)) for of in parts.values())] for one in outcomes]
    caption = (
        "Mean milliseconds of a request, means of a forward pass, and the processor cores that the service kept busy. "
        "Sent late is the load generator's own delay; rest is what is left of the latency: HTTP, waiting for a thread, "
        "the network."
    )
    return _table(caption, ("case", *parts), rows)


def _late(outcomes: Sequence[Outcome]) -> str:
    """A warning where the load generator measured itself."""

    def is_late(row: LatencyRow) -> bool:
        sent, took = _mean(row.send_delay_ms), _mean(row.latency_ms)
        return sent is not None and took is not None and sent > MOST_LATE * took

    late = [outcome.name for outcome in outcomes if any(map(is_late, outcome.rows))]
    if not late:
        return ""
    return (
        f'<p class="bad">The load generator sent requests late, by more than {MOST_LATE:.0%} of the latency, in '
        f"{escape('; '.join(late))}: give it more cores, with --processes, or a machine of its own.</p>"
    )


def _rest(row: LatencyRow) -> float | None:
    """Of the mean latency, what neither the service nor the load generator tells of."""
    told = [row.queue_ms, row.compute_ms, row.tokenize_ms]
    if row.latency_ms is None or all(spread is None for spread in told):
        return None
    known = [spread.mean for spread in (*told, row.send_delay_ms) if spread is not None]
    return max(0.0, row.latency_ms.mean - sum(known))


def _memory(memories: Sequence[Held]) -> str:
    parts: dict[str, tuple[Callable[[MemoryRow], float | None], float]] = {
        "resident, MiB": (lambda row: row.rss_bytes, MIB),
        "anonymous, MiB": (lambda row: row.anonymous_bytes, MIB),
        "accelerator, MiB": (lambda row: row.device_bytes, MIB),
        "adapters resident": (lambda row: row.resident_adapters, 1),
        "their weights, MiB": (lambda row: row.resident_adapter_bytes, MIB),
        "kept by the host, MiB": (lambda row: row.host_adapter_bytes, MIB),
        "growth, MiB/h": (lambda row: row.growth_bytes_per_h, MIB),
    }
    rows = [
        [held.case, moment, *(_shown(across(_divided(of(row), unit) for row in found)) for of, unit in parts.values())]
        for held in memories
        for moment, found in (("idle", held.idle), ("load", held.load))
        if found
    ]
    caption = (
        "Idle is before the first request, load the most during it. Resident counts files that are mapped, anonymous "
        "does not; growth is a straight line through the second half of a run, and says little of a short one."
    )
    return _table(caption, ("case", "moment", *parts), rows)


def _latency(outcome: Outcome, name: str) -> Across | None:
    return outcome.figure(lambda row: None if row.latency_ms is None else getattr(row.latency_ms, name))


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else spread.mean


def _divided(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _errors(outcome: Outcome) -> str:
    return ", ".join(f"{number:,} × {kind}" for kind, number in outcome.errors().items()) or "0"


def _shown(figure: Across | None) -> str:
    """A cell's text; a range stands on a line of its own."""
    if figure is None:
        return NOTHING
    median, low, high = map(short, (figure.median, figure.low, figure.high))
    return median if low == high else f"{median}\n{low} to {high}"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names the row. rows: texts, of which a second line is small."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, *cells in rows:
        shown = "".join(f"<td>{_cell(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{shown}</tr>')
    return (
        f'<p class="note">{escape(caption)}</p><div class="wide" tabindex="0" role="region" aria-label="Table"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    first, _, rest = text.partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")


def _with_own_ids(svg: str, number: int) -> str:
    """Plots share what they draw with; on one page every id must differ."""
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>plot-{number}-", svg)
