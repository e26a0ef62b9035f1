"""`adaptermux-loadtest`: measure a service."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from server import __version__

if TYPE_CHECKING:
    from decision.rows import LatencyRow, MemoryRow
    from loadtest.harness import Turn
    from loadtest.measure import Progress
    from loadtest.remote import Remote
    from loadtest.scenario import Scenario

EXAMPLES = """examples:
  adaptermux-loadtest run smoke
  adaptermux-loadtest run methods --set service.dtype=bfloat16 --output methods-bf16
  adaptermux-loadtest run capacity --host https://classify.example.org --api-key-file key --processes 4
  adaptermux-loadtest ui methods
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse, 130 stopped by a signal."""
    flags = make_parser().parse_args(arguments)
    from decision.rows import RowsError
    from loadtest.errors import LoadTestError, Misuse

    try:
        with _stopped_as_by_hand():
            return int(flags.verb_function(flags))
    except KeyboardInterrupt:
        print("adaptermux-loadtest: stopped", file=sys.stderr)
        return 130
    except Misuse as error:
        print(f"adaptermux-loadtest: {error}", file=sys.stderr)
        return 2
    except (LoadTestError, RowsError) as error:
        print(f"adaptermux-loadtest: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="adaptermux-loadtest", description="Measure how fast, how large and how steady a service is.",
        epilog=EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"adaptermux {__version__}")
    choices = parser.add_subparsers(required=True, metavar="VERB")

    run = choices.add_parser("run", help="run a scenario and write rows, raw samples and a report")
    _add_scenario(run)
    run.add_argument("--output", type=Path, help="new folder (loadtest-runs/SCENARIO-TIME)")
    run.add_argument("--rows", type=Path, metavar="FILE", help="add the rows to this file, not to OUTPUT/rows.jsonl")
    run.add_argument("--processes", type=int, default=1, help="of the load generator, for more cores (%(default)s)")
    run.add_argument("--trained", action="store_true", help="with --host: its adapters' weights are not random")
    run.add_argument("--quiet", action="store_true", help="no progress line")
    run.add_argument("--json", action="store_true", help="print the rows, one JSON object a line")
    run.set_defaults(verb_function=_run)

    show = choices.add_parser("list", help="say which scenarios there are")
    show.set_defaults(verb_function=_list)

    report = choices.add_parser("report", help="make the report of a run's folder, or of files of rows, anew")
    report.add_argument("source", type=Path, nargs="+", help="folder that `run` has written, or files of rows")
    report.add_argument("--output", type=Path, required=True, metavar="HTML", help="file to write")
    report.set_defaults(verb_function=_report)

    ui = choices.add_parser("ui", help="open Locust's web page with a scenario's first case, to click")
    _add_scenario(ui)
    ui.add_argument("--web-port", type=int, default=8089, help="of Locust's page (%(default)s)")
    ui.set_defaults(verb_function=_ui)
    return parser


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", help="a name that `list` shows, or a .toml file")
    parser.add_argument("--host", metavar="URL", help="a service that runs already; otherwise one is started")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the key for --host")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the scenario; repeatable"
    )


def _run(flags: argparse.Namespace) -> int:
    from decision.rows import LatencyRow, Writer
    from loadtest import scenario as scenarios
    from loadtest.errors import Misuse
    from loadtest.harness import Harness, Options

    scenario = scenarios.read(flags.scenario, flags.set)
    if flags.processes < 1:
        raise Misuse(f"--processes is {flags.processes}, it must be at least 1")
    folder: Path = flags.output or Path("loadtest-runs") / f"{scenario.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        raise Misuse(f"output `{folder}` exists already; choose another name")
    folder.mkdir(parents=True)
    options = Options(folder, _words(flags), _remote(flags), flags.processes, flags.trained)
    line = _Line(scenario, is_shown=not flags.quiet)
    rows: list[LatencyRow | MemoryRow] = []
    with Writer(flags.rows or folder / "rows.jsonl") as writer, Harness(scenario, options, line.show) as harness:
        line.say("starting")
        for row in harness.run():
            writer.write(row)
            rows.append(row)
            line.clear()
            if flags.json:
                print(row.model_dump_json(exclude_defaults=True), flush=True)
            elif isinstance(row, LatencyRow):
                print(_summary(row), flush=True)
        line.clear()
    _write_report([folder], rows, folder / "report.html", scenario.description)
    print(f"report: {folder / 'report.html'}", file=sys.stderr)
    return 1 if any(isinstance(row, LatencyRow) and _is_broken(row) for row in rows) else 0


def _is_broken(row: LatencyRow) -> bool:
    """Errors fail a run, but for those that are looked for: beyond the highest rate, and of the one that floods."""
    from loadtest.harness import OTHERS

    is_expected = row.limit_p95_ms is not None or ("flood" in row.workload and row.part != OTHERS)
    return row.num_errors > 0 and not is_expected


def _summary(row: LatencyRow) -> str:
    parts = [f"{row.case:<44}" if row.part == "all" else f"  {row.part:<42}"]
    parts.append(f"{row.throughput_per_s:8.1f} req/s")
    if row.latency_ms is not None:
        parts.append(f"p50 {row.latency_ms.p50:7.1f}  p95 {row.latency_ms.p95:7.1f}  p99 {row.latency_ms.p99:7.1f} ms")
    parts.append(f"{row.num_errors} errors" + (f" ({_errors(row)})" if row.num_errors else ""))
    return "  ".join(parts)


def _errors(row: LatencyRow) -> str:
    return ", ".join(f"{count} {name}" for name, count in row.errors.items())


def _list(flags: argparse.Namespace) -> int:
    from loadtest import scenario as scenarios

    for name in scenarios.names():
        found = scenarios.read(name)
        print(f"{name:<16} {len(found.cases):>3} cases, {found.seconds / 60:5.1f} min  {found.description}")
    return 0


def _report(flags: argparse.Namespace) -> int:
    from decision.rows import LatencyRow, MemoryRow, read
    from loadtest import scenario as scenarios
    from loadtest.errors import Misuse

    folders = [path for path in flags.source if path.is_dir()]
    files = [path / "rows.jsonl" if path.is_dir() else path for path in flags.source]
    rows = [row for path in files for row in read(path) if isinstance(row, LatencyRow | MemoryRow)]
    if not rows:
        raise Misuse(f"`{files[0]}` holds no rows of a load test")
    known = {name: scenarios.read(name).description for name in scenarios.names()}
    _write_report(folders, rows, flags.output, known.get(rows[0].scenario, ""))
    return 0


def _write_report(
    folders: Sequence[Path], rows: Sequence[LatencyRow | MemoryRow], output: Path, description: str
) -> None:
    from loadtest import report

    output.write_text(report.page(rows, folders, description), encoding="utf-8")


def _ui(flags: argparse.Namespace) -> int:
    from loadtest import scenario as scenarios
    from loadtest.clicking import serve

    return serve(scenarios.read(flags.scenario, flags.set), _remote(flags), flags.web_port)


def _remote(flags: argparse.Namespace) -> Remote | None:
    from loadtest.errors import Misuse
    from loadtest.remote import Remote

    if flags.host is None:
        if flags.api_key_file is not None:
            raise Misuse("--api-key-file goes with --host")
        return None
    if not flags.host.startswith(("http://", "https://")):
        raise Misuse(f"--host is {flags.host}, it must begin with http:// or https://")
    if flags.api_key_file is None:
        return Remote(flags.host.rstrip("/"))
    try:
        key = flags.api_key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"--api-key-file {flags.api_key_file} cannot be read: {error}") from error
    return Remote(flags.host.rstrip("/"), {"authorization": f"Bearer {key}"})


def _words(flags: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["adaptermux-loadtest", "run", flags.scenario]
    words += ["--host", flags.host] if flags.host else []
    words += [part for change in flags.set for part in ("--set", change)]
    words += ["--processes", str(flags.processes)] if flags.processes > 1 else []
    return shlex.join(words)


class _Line:
    """The line on standard error that says what is going on."""

    def __init__(self, scenario: Scenario, is_shown: bool) -> None:
        self._is_shown = is_shown and sys.stderr.isatty()
        self._is_told = is_shown and not self._is_shown
        self._name = scenario.name
        self._last = ""

    def say(self, text: str) -> None:
        if self._is_shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif self._is_told and text != self._last:
            print(text, file=sys.stderr, flush=True)
        self._last = text

    def clear(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, turn: Turn, progress: Progress | None) -> None:
        text = f"{self._name} {turn.number}/{turn.total} {turn.case}"
        if progress is None:
            self.say(text)
        elif self._is_shown:
            text += f": {progress.elapsed_s:.0f} of {progress.total_s:.0f} s, {progress.rate_per_s:.0f} req/s"
            text += f", p95 {progress.p95_ms:.0f} ms" if progress.p95_ms is not None else ""
            text += f", {progress.rss_bytes / 2**20:.0f} MiB" if progress.rss_bytes is not None else ""
            self.say(text)


@contextmanager
def _stopped_as_by_hand() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, so that the service it started is stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
