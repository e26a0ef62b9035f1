"""`adaptermux-serve classify`: a file through a real server, whatever happens on the way."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base_model import BaseModel
from server.client import Client
from server.errors import ClassifyFailed
from server.rows import Columns, Encoder, Row, Rows
from tests.front import LIMIT_S, Front, Reply
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import add_manifest

NUM_ROWS = 60
BATCH = 8
HELD = b"word44,"
"""Of the sixth batch."""
NUM_BEFORE = 5 * BATCH
MAX_INPUTS = 16
MAX_BODY_BYTES = 4000
BUSY = Reply(503, b'{"title": "overloaded", "status": 503, "code": "overloaded", "detail": "4096 texts wait"}')


@pytest.fixture(scope="module")
def behind(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running server."""
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "intents", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    add_manifest(root / "intents", bert_base, max_length=12)
    make_adapter(root / "tags", bert_base.folder, peft_configs("bert")["ia3-paper"], 4, seed=1)
    add_manifest(root / "tags", bert_base, problem_type="multi_label", labels=("a", "b", "c|d", "e"))
    (root / "broken").mkdir()
    arguments = ["--adapters", root, "--base", bert_base.folder, "--port", "0", "--dtype", "float32", "--threads", "1"]
    limits = ["--max-inputs", MAX_INPUTS, "--max-body-bytes", MAX_BODY_BYTES]
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *map(str, [*arguments, *limits])], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    started = next(event for event in map(json.loads, process.stderr) if event["event"] == "server_started")
    yield started["url"]
    process.kill()
    process.wait(LIMIT_S)
    process.stderr.close()


@pytest.fixture
def front(behind: str) -> Iterator[Front]:
    with Front(behind).running() as front:
        yield front


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file whose texts hold all that CSV must quote."""
    path = tmp_path / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([index, f'word{index}, "word{index + 1}"\nü word7'] for index in range(NUM_ROWS))
    return path


def command(url: str, *flags: object, adapter: str = "intents") -> list[str]:
    given = ["--url", url, "--adapter", adapter, "--batch", BATCH, *flags]
    return [sys.executable, "-m", "server", "classify", *map(str, given)]


def classify(
    url: str, *flags: object, adapter: str = "intents", texts: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(url, *flags, adapter=adapter),
        input=texts,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=os.environ | environment,
    )


def ask(url: str, adapter_id: str, *texts: object, **options: object) -> dict[str, Any]:
    """What the server answers when it is asked without the client."""
    body = json.dumps({"adapter_id": adapter_id, "inputs": texts, **options}).encode()
    request = urllib.request.Request(f"{url}/v1/classify", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"


def rows_done(output: Path) -> int:
    try:
        return int(json.loads(Path(f"{output}.partial.json").read_text())["num_rows"])
    except FileNotFoundError:
        return 0


def fails(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("adaptermux-serve")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


# what is written


def test_rows_keep_their_columns_and_order_and_get_what_the_server_answers(
    behind: str, table: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.csv"
    done = classify(behind, table, "--output", output, "--concurrency", 3)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before, after = read(table), read(output)
    assert list(after[0]) == ["id", "text", "label", "score", "adapter_version"]
    assert [{"id": row["id"], "text": row["text"]} for row in after] == before
    for row in after[:: NUM_ROWS // 5]:
        answer = ask(behind, "intents", row["text"])
        assert row["label"] == answer["predictions"][0]["label"]
        assert float(row["score"]) == pytest.approx(answer["predictions"][0]["score"], abs=1e-5)
        assert row["adapter_version"] == answer["version"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "texts.csv"]


def test_json_lines_keep_their_types_and_pairs_are_asked_as_pairs(behind: str, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"a": "word1", "b": "word2", "id": 7, "more": {"x": [1.5, None]}},
        {"a": "word3 ü", "b": "word4", "id": None},
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    done = classify(behind, source, "--text-column", "a", "--pair-column", "b", "--top-k", 2)
    assert done.returncode == 0, done.stderr
    for record, line in zip(records, done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        [wanted] = ask(behind, "intents", {"text": record["a"], "text_pair": record["b"]})["predictions"]
        assert {name: found.pop(name) for name in record} == record
        assert found["label"] == wanted["label"]
        assert found["scores"] == pytest.approx({one["label"]: one["score"] for one in wanted["scores"][:2]}, abs=1e-5)


def test_several_labels_are_a_list_in_json_lines_and_joined_in_csv(behind: str) -> None:
    [wanted] = ask(behind, "tags", "word1", threshold=0.0)["predictions"]
    ranked = wanted["labels"]
    assert len(ranked) == 4
    flags = ("-", "--threshold", "0")
    done = classify(behind, *flags, "--format", "jsonl", adapter="tags", texts="word1\n")
    assert json.loads(done.stdout)["labels"] == ranked
    done = classify(behind, *flags, adapter="tags", texts="word1\n")
    [row] = csv.DictReader(io.StringIO(done.stdout))
    assert json.loads(row["labels"]) == ranked  # one of them holds the separator
    done = classify(behind, "-", "--threshold", "1", adapter="tags", texts="word1\n")
    [row] = csv.DictReader(io.StringIO(done.stdout))
    assert row["labels"] == ""


def test_lines_of_standard_input_become_csv_on_standard_output(behind: str) -> None:
    done = classify(behind, "-", "--logits", texts="word1\r\nword2, word3\nword4")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["text"] for row in rows] == ["word1", "word2, word3", "word4"]
    wanted = ask(behind, "intents", "word2, word3", output="logits")["predictions"][0]
    assert float(rows[1]["score"]) == pytest.approx(wanted["score"], abs=1e-5)


def test_an_input_without_rows_becomes_an_output_without_rows(behind: str, tmp_path: Path) -> None:
    for name, text in (("none.csv", "text\n"), ("none.jsonl", "")):
        (tmp_path / name).write_text(text)
        done = classify(behind, tmp_path / name, "--output", tmp_path / f"answers-{name}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers-none.csv").read_text() == "text,label,score,adapter_version\n"
    assert (tmp_path / "answers-none.jsonl").read_text() == ""


def test_a_column_that_both_have_asks_for_a_prefix(behind: str, tmp_path: Path) -> None:
    source, output = tmp_path / "labelled.csv", tmp_path / "answers.csv"
    source.write_text("text,label\nword1,right\n")
    fails(classify(behind, source, "--output", output), 2, "`label`", "--column-prefix")
    assert classify(behind, source, "--output", output, "--column-prefix", "predicted_").returncode == 0
    assert list(read(output)[0]) == ["text", "label", "predicted_label", "predicted_score", "predicted_adapter_version"]


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2), min_size=1, max_size=5
    )
)
def test_whatever_a_csv_cell_holds_is_read_back(cells: list[list[str]]) -> None:
    encoder = Encoder("csv", ["a"], ["b"])
    rows = [(Row(index, {"a": a}, "x", None, None), {"b": b}) for index, (a, b) in enumerate(cells)]
    data = encoder.header() + encoder.encode(rows)
    assert list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True)) == [["a", "b"], *cells]


def test_half_a_character_in_json_lines_comes_out_as_it_was() -> None:
    line = '{"text": "a", "other": "\\ud800"}\n'
    rows = Rows(io.StringIO(line), "x", "jsonl", Columns("text"))
    assert Encoder("jsonl", rows.names, []).encode((row, {}) for row in rows) == line.encode()


# rows that are refused


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Ten rows, of which 3 and 7 are empty and 5 is too long."""
    texts = [f"word{number}" for number in range(1, 11)]
    texts[2], texts[6], texts[4] = " ", "", " ".join(["word1"] * 40)
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_a_row_that_is_refused_ends_the_work_and_is_named(behind: str, mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    fails(classify(behind, mixed, "--output", output, "--batch", 2), 1, "row 3:", "empty", "--keep-going", "2 rows")
    lines = mixed.read_text().splitlines(keepends=True)
    lines[2] = '{"text": "word3"}\n'
    mixed.write_text("".join(lines))  # the row is corrected, those before it are done
    fails(classify(behind, mixed, "--output", output, "--batch", 2), 1, "row 5:", "42 tokens", "4 rows")
    assert len(Path(f"{output}.partial").read_text().splitlines()) == 4


def test_rows_that_are_refused_are_written_with_the_reason(behind: str, mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.csv"
    done = classify(behind, mixed, "--output", output, "--keep-going")
    assert done.returncode == 0
    assert "3 of 10 rows" in done.stderr
    rows = read(output)
    assert [number for number, row in enumerate(rows, 1) if row["error"]] == [3, 5, 7]
    assert all(bool(row["label"]) == (not row["error"]) for row in rows)
    assert rows[4]["error"].startswith("it has 42 tokens")
    assert classify(behind, mixed, "--keep-going", "--truncate").stdout.count('"error"') == 2


def test_rows_without_a_text_are_refused(behind: str, tmp_path: Path) -> None:
    source = tmp_path / "odd.jsonl"
    source.write_text('{"text": 5}\n{"other": "x"}\n{"text": "word1"}\n{"text": "\\ud800"}\n')
    done = classify(behind, source, "--keep-going")
    errors = [json.loads(line).get("error") for line in done.stdout.splitlines()]
    assert errors[:3] == ["`text` is no text", "there is no `text`", None]
    assert "surrogate" in errors[3]


def test_batches_that_are_too_large_for_the_server_are_sent_in_parts(behind: str, tmp_path: Path) -> None:
    long = "word1" + " " * (MAX_BODY_BYTES - 1000)  # four of them are a body that is too long
    texts = [f"word{index}" for index in range(3 * MAX_INPUTS)] + [long] * 4 + [long + " " * 1000]
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = classify(behind, source, "--batch", 10 * MAX_INPUTS, "--keep-going")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["text"] for one in found] == texts
    assert [bool(one.get("label")) for one in found] == [True] * (len(texts) - 1) + [False]
    assert str(MAX_BODY_BYTES) in found[-1]["error"]


# mistakes


def test_mistakes_are_told_in_one_sentence(behind: str, table: Path, tmp_path: Path) -> None:
    fails(classify(behind, table, adapter="intent"), 1, "404", "did you mean `intents`")
    fails(classify(behind, table, adapter="broken"), 1, "adapter_config.json")
    fails(classify(behind, table, "--text-column", "body"), 2, "`body`", "id, text")
    fails(classify(behind, tmp_path / "nowhere.csv"), 1, "nowhere.csv")
    fails(classify(behind, tmp_path / "texts.xlsx"), 2, "--input-format")
    fails(classify(behind, table, "--output", tmp_path / "answers.txt"), 2, "--format")
    fails(classify(behind, table, "--output", tmp_path / "nowhere" / "answers.csv"), 1, "cannot be written")
    fails(classify(behind, table, "--threshold", "0.5"), 1, "422", "multi-label")
    fails(classify("127.0.0.1:8000", table), 2, "--url")
    for flags in (["--batch", "0"], ["--retry-s", "nan"], ["--top-k", "x"]):
        done = classify(behind, table, *flags)
        assert (done.returncode, flags[0] in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.csv", b"text,id\nword1,1\nword2\n", "row 2 has 1 fields"),
        ("a.csv", b'text,id\nword1,1\nword2,"2\n', "unexpected end"),
        ("a.csv", b"text,text\nword1,1\n", "twice"),
        ("a.csv", b"text,id\nword1,1\nword\xff,2\n", "utf-8"),
        ("a.jsonl", b'{"text": "word1"}\n{"text"\n', "line 2"),
        ("a.jsonl", b'{"text": "word1"}\n["word2"]\n', "line 2"),
    ],
)
def test_damage_in_the_input_is_told_with_its_place(
    behind: str, tmp_path: Path, name: str, data: bytes, word: str
) -> None:
    (tmp_path / name).write_bytes(data)
    fails(classify(behind, tmp_path / name), 1, word)


def test_nobody_there_is_told_at_once(table: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    fails(classify(f"http://127.0.0.1:{port}", table), 1, str(port), "refused")


def test_a_server_that_is_no_adaptermux_is_told(front: Front, table: Path) -> None:
    front.known[None] = Reply(200, b"<html>\n")
    fails(classify(front.url, table), 1, r"the answer is none of adaptermux: '<html>\n'")


def test_the_key_is_shown_and_comes_from_a_file_or_the_environment(front: Front, table: Path, tmp_path: Path) -> None:
    assert classify(front.url, table).returncode == 0
    assert set(front.keys) == {None}
    assert classify(front.url, table, ADAPTERMUX_API_KEY="from-environment").returncode == 0
    (tmp_path / "key").write_text("from-file\n")
    front.asked.clear()
    flags = ("--api-key-file", tmp_path / "key")
    assert classify(front.url, table, *flags, ADAPTERMUX_API_KEY="from-environment").returncode == 0
    assert set(front.keys[-len(front.asked) :]) == {"Bearer from-file"}
    assert "Bearer from-environment" in front.keys
    (tmp_path / "key").write_text("two\nlines")
    fails(classify(front.url, table, *flags), 2, "--api-key-file")


# faults of the server


def test_a_busy_server_is_waited_for_as_long_as_it_asks(front: Front, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.csv"
    assert classify(front.url, table, "--output", output).returncode == 0
    wanted = output.read_bytes()
    front.planned = [Reply(503, BUSY.body, {"retry-after": "1"}), Reply(429), Reply(502, b"<html>"), BUSY]
    began = time.monotonic()
    done = classify(front.url, table, "--output", output, "--overwrite", "--concurrency", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began > 1
    assert output.read_bytes() == wanted


def test_a_server_that_stays_busy_is_given_up(front: Front, table: Path, tmp_path: Path) -> None:
    front.planned = [BUSY] * 1000
    fails(classify(front.url, table, "--retry-s", "0.3"), 1, "4096 texts wait", "--retry-s")
    front.planned = [Reply(503, BUSY.body, {"retry-after": "30"})] * 1000
    began = time.monotonic()
    fails(classify(front.url, table, "--retry-s", "20"), 1, "asks to wait 30 s")
    assert time.monotonic() - began < 20


def test_a_server_that_is_lost_in_the_middle_leaves_work_that_goes_on(behind: str, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.csv"
    with Front(behind).running() as front:
        assert classify(front.url, table, "--output", output).returncode == 0
        wanted, known = output.read_bytes(), front.known
        output.unlink()
        front.asked.clear()
        front.held = HELD
        process = subprocess.Popen(
            command(front.url, table, "--output", output, "--retry-s", 0.5), stderr=subprocess.PIPE, text=True
        )
        until(lambda: front.num_held > 0 and rows_done(output) == NUM_BEFORE)
    _, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "goes on" in told
    assert "Traceback" not in told
    assert rows_done(output) == NUM_BEFORE
    with Front(behind).running() as front:
        front.known = known
        assert classify(front.url, table, "--output", output).returncode == 0
        assert sum(len(json.loads(data)["inputs"]) for data in front.asked) == NUM_ROWS - NUM_BEFORE
    assert output.read_bytes() == wanted


# interruptions


@pytest.fixture
def interrupted(front: Front, table: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, bytes]]:
    """A client that has written some rows and waits for the others, its output, and what that is to become."""
    output = tmp_path / "answers.csv"
    assert classify(front.url, table, "--output", output).returncode == 0
    wanted = output.read_bytes()
    output.unlink()
    front.asked.clear()
    front.held = HELD
    process = subprocess.Popen(command(front.url, table, "--output", output), stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: front.num_held > 0 and rows_done(output) == NUM_BEFORE)
        yield process, output, wanted
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def goes_on(front: Front, table: Path, output: Path, wanted: bytes) -> None:
    assert rows_done(output) == NUM_BEFORE
    front.moving.set()
    front.asked.clear()
    done = classify(front.url, table, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert output.read_bytes() == wanted
    assert sum(len(json.loads(data)["inputs"]) for data in front.asked) == NUM_ROWS - NUM_BEFORE
    assert sorted(path.name for path in output.parent.iterdir()) == ["answers.csv", "texts.csv"]


def test_a_client_that_is_killed_goes_on_where_it_was(
    interrupted: tuple[subprocess.Popen[str], Path, bytes], front: Front, table: Path
) -> None:
    process, output, wanted = interrupted
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT_S)
    assert not output.exists()
    partial = Path(f"{output}.partial")
    assert wanted.startswith(partial.read_bytes())
    with partial.open("ab") as file:
        file.write(b'58,"half a ro')  # killed while it wrote
    goes_on(front, table, output, wanted)


def test_ctrl_c_ends_a_client_at_once_though_the_server_hangs(
    interrupted: tuple[subprocess.Popen[str], Path, bytes], front: Front, table: Path
) -> None:
    process, output, wanted = interrupted
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=LIMIT_S / 4)
    assert process.returncode == 1
    assert told.count("\n") == 1
    assert told.startswith("adaptermux-serve: interrupted; ")
    goes_on(front, table, output, wanted)


def test_a_client_that_is_stopped_while_it_connects_asks_nothing(front: Front) -> None:
    front.held = HELD
    client = Client(front.url, None, retry_s=10)

    class Slow(HTTPConnection):
        def connect(self) -> None:
            client.stop()
            super().connect()

    client._kind = Slow
    with client, pytest.raises(ClassifyFailed, match="stopped"):
        client.classify({"adapter_id": "intents", "inputs": [HELD.decode()]})
    assert front.num_held == 0


def test_work_is_not_gone_on_with_when_it_is_other_work(
    interrupted: tuple[subprocess.Popen[str], Path, bytes], front: Front, table: Path
) -> None:
    process, output, wanted = interrupted
    fails(classify(front.url, table, "--output", output), 1, "another process")
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT_S)
    partial = Path(f"{output}.partial")
    kept = partial.read_bytes()
    fails(classify(front.url, table, "--output", output, adapter="tags"), 1, f"delete `{partial}`")
    fails(classify(front.url, table, "--output", output, "--truncate"), 1, "truncate", f"delete `{partial}`")
    rows = table.read_bytes()
    table.write_bytes(rows.replace(b"word1,", b"word2,", 1))
    fails(classify(front.url, table, "--output", output), 1, "another input", f"delete `{partial}`")
    table.write_bytes(rows)
    record = Path(f"{output}.partial.json")
    mark = record.read_text()
    record.unlink()
    fails(classify(front.url, table, "--output", output), 1, "cannot be read", f"delete `{partial}`")
    record.write_text(mark)
    partial.write_bytes(kept[:-10])
    fails(classify(front.url, table, "--output", output), 1, "bytes", f"delete `{partial}`")
    partial.write_bytes(kept)
    goes_on(front, table, output, wanted)


def test_a_finished_output_is_replaced_only_when_asked(behind: str, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.csv"
    output.write_text("mine")
    fails(classify(behind, table, "--output", output), 2, "--overwrite")
    assert output.read_text() == "mine"
    assert classify(behind, table, "--output", output, "--overwrite").returncode == 0
    assert len(read(output)) == NUM_ROWS


def test_a_reader_that_leaves_ends_the_work_in_one_sentence(front: Front, table: Path) -> None:
    front.held = HELD
    process = subprocess.Popen(
        command(front.url, table, "--concurrency", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    front.moving.set()
    assert process.stderr is not None
    told = process.stderr.read().decode()
    assert process.wait(LIMIT_S) == 1
    process.stderr.close()
    assert told.count("\n") == 1
    assert "Broken pipe" in told


# the progress bar


@pytest.mark.parametrize("flags", [[], ["--quiet"]])
def test_a_terminal_shows_progress_unless_quiet(behind: str, table: Path, tmp_path: Path, flags: list[str]) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        command(behind, table, "--output", tmp_path / "answers.csv", *flags), stdin=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:  # how Linux says that the other side has closed the terminal
        pass
    os.close(ours)
    assert process.wait(LIMIT_S) == 0
    if flags:
        assert shown == b""
    else:
        assert f"{NUM_ROWS}/{NUM_ROWS}".encode() in shown
        assert b"rows/s" in shown
