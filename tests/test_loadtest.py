"""What a load test asks, what it keeps, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import capacity, scenario
from loadtest.command import main
from loadtest.errors import Misuse
from loadtest.job import Job
from loadtest.samples import FIELDS, NO_TIMINGS, Recorder, Samples, Timings
from loadtest.scenario import Case
from loadtest.wire import Native
from loadtest.workload import Ask, Burst, Stream, Texts, Workload


def arrivals(workload: Workload, until_s: float, **given: float) -> list[float]:
    return list(itertools.takewhile(lambda due: due < until_s, Stream(workload, **given).arrivals()))  # type: ignore[arg-type]


def test_the_same_seed_asks_the_same_and_every_client_something_else() -> None:
    def some(seed: int, index: int) -> list[Ask]:
        stream = Stream(Workload(num_hot=16, num_users=2, seed=seed), index)
        return [stream.next() for _ in range(20)]

    assert some(1, 0) == some(1, 0)
    assert some(1, 0) != some(1, 1)
    assert some(1, 0) != some(2, 0)


@pytest.mark.parametrize("zipf_s", [0.0, 1.0, 2.0])
def test_adapters_are_asked_for_by_their_rank(zipf_s: float) -> None:
    workload = Workload(num_hot=8, num_users=1, zipf_s=zipf_s)
    stream, count = Stream(workload), 20_000
    found = Counter(stream.next().adapter_index for _ in range(count))
    weights = [(rank + 1) ** -zipf_s for rank in range(8)]
    for rank, weight in enumerate(weights):
        expected = weight / sum(weights)
        assert found[rank] / count == pytest.approx(expected, abs=4 * math.sqrt(expected / count))


def test_skewed_texts_have_the_mean_that_was_asked_and_some_are_long() -> None:
    stream = Stream(Workload(num_users=1, texts=Texts(num_tokens=20)))
    lengths = [len(stream.next().texts[0].split()) + 2 for _ in range(5000)]
    assert np.mean(lengths) == pytest.approx(20, abs=1.2)
    assert min(lengths) >= 4
    assert 100 < max(lengths) <= 128
    assert np.median(lengths) < 18


def test_texts_of_a_file_are_asked_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text('sentence,label\n"one, two",a\nthree,b\n,c\n', encoding="utf-8")
    texts = Texts(kind="csv", file=path, column="sentence")
    stream = Stream(Workload(num_users=1, texts=texts, texts_per_request=3))
    found = [stream.next().texts for _ in range(20)]
    assert {text for some in found for text in some} == {"one, two", "three"}
    assert {len(some) for some in found} == {3}


def test_arrivals_are_poisson_at_the_rate_that_was_asked() -> None:
    gaps = np.diff(arrivals(Workload(rate_per_s=50), 400))
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)  # as it is of an exponential distribution
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_senders_share_the_rate() -> None:
    workload = Workload(rate_per_s=60)
    counts = [len(arrivals(workload, 100, index=index, share=1 / 3)) for index in range(3)]
    assert sum(counts) == pytest.approx(6000, rel=0.05)


@settings(deadline=None)
@given(st.floats(1.5, 10), st.floats(2, 20), st.floats(0.1, 0.9))
def test_a_burst_has_its_own_rate_and_the_calm_between_the_usual_one(times: float, every_s: float, part: float) -> None:
    burst = Burst(times=times, every_s=every_s, for_s=every_s * part)
    due = arrivals(Workload(rate_per_s=50, burst=burst), 20 * every_s)
    assert all(a < b for a, b in itertools.pairwise(due))
    in_burst = sum(one % every_s >= every_s * (1 - part) for one in due)
    for count, seconds, rate in (
        (in_burst, 20 * every_s * part, 50 * times), (len(due) - in_burst, 20 * every_s * (1 - part), 50),
    ):  # fmt: skip
        assert count == pytest.approx(rate * seconds, abs=6 * math.sqrt(rate * seconds) + 1)


def test_a_flood_comes_on_top_of_the_rate_and_goes_to_one_adapter() -> None:
    workload = Workload(num_hot=10, zipf_s=0, rate_per_s=100, flood=11)
    assert workload.total_rate_per_s == pytest.approx(200)
    assert workload.shares()[0] == pytest.approx(0.55)
    assert workload.shares()[1:] == pytest.approx([0.05] * 9)


def test_samples_come_back_as_they_were_written_whoever_wrote_them(tmp_path: Path) -> None:
    for process, errors in enumerate((["503 overloaded", None], [None, "timeout", "503 overloaded"])):
        recorder = Recorder(tmp_path)
        for index, error in enumerate(errors):
            recorder.note(10.0 * index + process, 0.5, 20.0 + index, Timings(5.0, 10.0, 0.25, 17.0), 30, 2, 7, error)
        recorder.close()
        for kind in ("samples", "errors.json"):
            next(tmp_path.glob(f"[0-9]*.{kind}")).rename(tmp_path / f"process-{process}.{kind}")
    found = Samples.read(tmp_path)
    assert list(found.records["due_s"]) == [0, 1, 10, 11, 21]
    assert found.errors() == {"503 overloaded": 2, "timeout": 1}
    assert len(found.answered()) == 2
    assert found.answered().records["service_ms"].tolist() == [17.0, 17.0]
    assert len(found.between(1, 11)) == 2
    assert len(found.of([7])) == 5
    assert len(found.of([0])) == 0


def test_a_record_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for due_s in range(5):
        recorder.note(due_s, 0, 1, NO_TIMINGS, 0, 1, 0, None)
    recorder.close()
    (path,) = tmp_path.glob("*.samples")
    path.write_bytes(path.read_bytes()[: -FIELDS.itemsize // 2])
    assert list(Samples.read(tmp_path).records["due_s"]) == [0, 1, 2, 3]
    assert list(Samples.read(tmp_path, last=2).records["due_s"]) == [2, 3]
    assert Samples.read(tmp_path).spread("queue_ms") is None, "nobody told"


def test_a_request_counts_where_it_was_answered_and_its_latency_where_it_was_due(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.note(1.0, 0, 3000, NO_TIMINGS, 0, 1, 0, None)  # due before the span, answered in it
    recorder.note(3.0, 0, 4000, NO_TIMINGS, 0, 1, 0, None)  # due in it, answered behind it
    recorder.note(3.5, 0, 10, NO_TIMINGS, 0, 1, 0, "timeout")
    recorder.close()
    samples = Samples.read(tmp_path)
    assert samples.finished_between(2, 5).records["due_s"].tolist() == [1.0]
    assert samples.between(2, 5).records["due_s"].tolist() == [3.0, 3.5]


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (200, b'{"adapter_id": "a", "predictions": [{"label": "x"}], "usage": {"tokens": 9}}', None),
        (200, b'{"adapter_id": "b", "predictions": [{"label": "x"}]}', "wrong answer"),
        (200, b'{"adapter_id": "a", "predictions": []}', "wrong answer"),
        (200, b"<html>", "wrong answer"),
        (503, b'{"code": "overloaded"}', "503 overloaded"),
        (502, b"Bad Gateway", "502"),
        (404, b"[]", "404"),
    ],
)
def test_only_a_right_answer_counts(status: int, content: bytes, error: str | None) -> None:
    header = "tokenize;dur=0.120, queue;dur=1.904, compute;dur=9.312, total;dur=12.020"
    answered = Native().read("a", Ask(0, ("text",)), status, content, header)
    assert answered.error == error
    if error is None:
        assert answered.num_tokens == 9
        assert answered.timings == Timings(1.904, 9.312, 0.12, 12.02)


@given(st.floats(0.05, 1e5), st.floats(1, 1000))
def test_the_search_ends_within_a_tenth_below_the_highest_rate(highest: float, first: float) -> None:
    tried, found = 1, None
    rates = capacity.search(first)
    rate = next(rates)
    try:
        while True:
            rate = rates.send(rate <= highest)
            tried += 1
    except StopIteration as end:
        found = end.value
    if highest < first / 1000:
        assert found is None
    elif highest >= first / 512:  # what is tried is halved each time
        assert found is not None
        assert highest / capacity.FINE / (1 + 1e-9) <= found <= highest
    assert tried <= capacity.MOST


def test_every_scenario_of_ours_can_be_read_and_says_what_it_is_for() -> None:
    expected = {"methods", "scale", "cache", "swap", "burst", "soak", "noisy-neighbour", "capacity", "lengths", "smoke"}
    assert set(scenario.names()) == expected
    for name in scenario.names():
        found = scenario.read(name)
        assert found.description
        assert found.cases


WHOLE = """
[adapters]
methods = ["lora", "ia3"]
num_registered = 4

[workload]
num_users = 2
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense = 1\n" + WHOLE, "`nonsense`"),
        (WHOLE + "rate_per_s = 3\n", "give either `num_users` (closed loop) or `rate_per_s` (open loop)"),
        (WHOLE + "num_hot = 5\n", "`workload.num_hot` is 5, and only 4 such are registered"),
        (WHOLE + 'num_hot = 3\nmethods = ["lora"]\n', "only 2 such"),
        (WHOLE + 'methods = ["prefix"]\n', "`workload.methods` names `prefix`"),
        (WHOLE + "flood = 2\n", "`burst` and `flood` go with `rate_per_s`"),
        ("limit_p95_ms = 3\n" + WHOLE, "give `workload.rate_per_s`"),
        (WHOLE + "[service]\nport = 80\n", "`service.port` is set by the load test itself"),
        (WHOLE + '[workload.texts]\nkind = "csv"\n', "`file` goes with"),
        (WHOLE + '[workload.texts]\nkind = "csv"\nfile = "none.csv"\n', "`none.csv` cannot be read"),
        (WHOLE + "[vary]\nduration_s = 3\n", "`vary` holds lists"),
        (WHOLE + "[vary]\nduration_s = [0]\n", "`duration_s`: Input should be greater than 0"),
        ("name = 'a/b'\n" + WHOLE, "`name`"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_by_name(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    assert main(["run", str(path), "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["run", "mehods"], "there is no scenario `mehods`; take one of burst, cache"),
        (["run", "smoke", "--set", "durations=4"], "`durations`: there is no such key"),
        (["run", "smoke", "--set", "workload.num_hot=0"], "`workload.num_hot`: Input should be greater"),
        (["run", "smoke", "--set", "duration_s"], "--set duration_s: it must be KEY=VALUE"),
        (["run", "smoke", "--set", "name.x=1"], "`name`"),
        (["run", "smoke", "--processes", "0"], "--processes is 0"),
        (["run", "smoke", "--host", "localhost:8000"], "it must begin with http:// or https://"),
        (["run", "smoke", "--api-key-file", "key"], "--api-key-file goes with --host"),
        (["run", "smoke", "--host", "http://127.0.0.1:9", "--api-key-file", "none"], "cannot be read"),
        (["run", "cache", "--host", "http://127.0.0.1:9"], "which --host does not let the load test do"),
        (["run", "swap", "--host", "http://127.0.0.1:9"], "changes adapters from files of this machine"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    assert says in capsys.readouterr().err


def test_a_service_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--host", "http://127.0.0.1:9", "--output", str(tmp_path / "out")]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_what_varies_names_the_cases_and_can_be_set() -> None:
    assert list(scenario.read("cache").cases) == ["cache_share 2.0", "cache_share 0.5"]
    found = scenario.read("methods", ["service.dtype=bfloat16", "workload.num_hot=8", "duration_s=2"])
    assert list(found.cases) == ["lora", "ia3", "prefix", "bottleneck", "lora+ia3+prefix+bottleneck"]
    assert {case.service["dtype"] for case in found.cases.values()} == {"bfloat16"}
    assert {case.duration_s for case in found.cases.values()} == {2}
    inner = scenario.read("smoke", ["workload.num_hot=4"])  # within what is varied
    assert list(inner.cases) == list(scenario.read("smoke").cases)
    assert {case.workload.num_hot for case in inner.cases.values()} == {4}


def test_a_job_is_read_as_it_was_written_and_by_nobody_else(tmp_path: Path) -> None:
    job = Job(workload=Workload(rate_per_s=3), adapters=["a"], headers={"authorization": "Bearer secret"})
    path = tmp_path / "job.json"
    job.write(path)
    assert Job.read(path) == job
    assert path.stat().st_mode & 0o077 == 0


def test_a_case_needs_no_file() -> None:
    with pytest.raises(ValueError, match="num_users"):
        Case.model_validate({"adapters": {"methods": ["lora"]}, "workload": {}})
    with pytest.raises(Misuse, match="no scenario"):
        scenario.read("other")
