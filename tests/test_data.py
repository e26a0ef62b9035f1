"""Reading data sets and cutting them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import DataError
from training.data import Columns, Row, load, take

HEADER = "text,label\n"


def rows(count: int, num_labels: int = 3) -> list[Row]:
    return [Row(f"text {index}", None, f"label{index % num_labels}") for index in range(count)]


def write_csv(path: Path, count: int) -> Path:
    path.write_text(HEADER + "".join(f"{row.text},{row.label}\n" for row in rows(count)), encoding="utf-8")
    return path


@given(st.integers(0, 80), st.integers(1, 6), st.integers(0, 90), st.integers(0, 5))
def test_take_loses_nothing_and_keeps_the_shares(count: int, num_labels: int, wanted: int, seed: int) -> None:
    given_rows = rows(count, num_labels)
    taken, others = take(given_rows, wanted, random.Random(seed))
    assert len(taken) == min(wanted, count)
    assert Counter(taken + others) == Counter(given_rows)
    shares = Counter(row.label for row in taken)
    assert all(abs(shares[f"label{i}"] - len(taken) / num_labels) <= 2 for i in range(num_labels) if count)


def test_missing_splits_are_cut_from_train_and_never_overlap(tmp_path: Path) -> None:
    splits = load(str(write_csv(tmp_path / "all.csv", 300)), None, seed=0)
    parts = [{row.text for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 300
    assert len(splits.test) == 60
    assert splits.labels == ("label0", "label1", "label2")


def test_the_test_rows_of_one_file_do_not_change_with_the_seed(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "all.csv", 300))
    first, second = load(path, 50, seed=0), load(path, 50, seed=1)
    assert set(first.test) == set(second.test)
    assert set(first.train) != set(second.train)


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    for name, count in (("train", 90), ("validation", 12), ("test", 30)):
        write_csv(tmp_path / f"{name}.csv", count)
    splits = load(str(tmp_path), 60, seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [60, 12, 30]


def test_labels_are_those_of_the_whole_training_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", 90)
    assert len(load(str(tmp_path), 3, seed=0).labels) == 3


def test_json_lines_with_pairs_and_other_column_names(tmp_path: Path) -> None:
    lines = [{"premise": f"a {i}", "hypothesis": f"b {i}", "gold": "yes" if i % 2 else "no"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    splits = load(str(tmp_path), None, seed=0, columns=Columns(label="gold"))
    row = splits.train[0]
    assert row.text_pair == row.text.replace("a", "b")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "no rows"),
        ("text,label\n", "no rows"),
        ("a,b\n1,2\n", "columns a, b"),
        ("text,label\n,x\n", "row 1: `text` is empty"),
        ("text,label\nhello,\n", "row 1: `label` is empty"),
        ("text,label\nhello,x\nhi,x\n", "1 label"),
        ('text,label\n"hello,x\n', "cannot be read"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError, match=word):
        load(str(tmp_path), None, seed=0)


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"text,label\nhall\xe5,x\n")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path), None, seed=0)


def test_a_bad_json_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{oops\n')
    with pytest.raises(DataError, match="line 2"):
        load(str(tmp_path), None, seed=0)


def test_a_test_label_without_training_rows_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", 90)
    (tmp_path / "test.csv").write_text(HEADER + "hello,strange\n")
    with pytest.raises(DataError, match="strange"):
        load(str(tmp_path), None, seed=0)


def test_a_hub_data_set_keeps_the_order_of_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not reached in tests; the library's own reader of local folders stands behind the same call."""
    import datasets

    train = datasets.Dataset.from_dict(
        {"sentence": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]},
        features=datasets.Features(
            {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant"])}
        ),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: datasets.DatasetDict({"train": train}))
    splits = load("hub:some/set", None, seed=0)
    assert splits.labels == ("zebra", "ant")
    assert {row.label for row in splits.train} == {"zebra", "ant"}


def test_a_hub_test_split_with_hidden_labels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    train = datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}, features=features
    )
    hidden = datasets.Dataset.from_dict({"text": ["secret"], "label": [-1]}, features=features)
    found = datasets.DatasetDict({"train": train, "test": hidden})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: found)
    splits = load("hub:some/set", None, seed=0)
    assert len(splits.test) == 8
    assert all(row.text != "secret" for row in splits.test)


@pytest.mark.parametrize("count", [2, 3])
def test_too_few_rows_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match="too small"):
        load(str(write_csv(tmp_path / "all.csv", count)), None, seed=0)


def test_an_empty_second_text_is_no_pair_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a {i}", "text_pair": "", "label": str(i % 2)}) for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n\n".join(lines) + "\n\n")
    splits = load(str(tmp_path), None, seed=0)
    assert {row.text_pair for row in splits.train} == {None}


@pytest.mark.parametrize("name", ["device_reviews", "support_tickets"])
def test_the_demo_corpora_are_whole(name: str) -> None:
    """No text twice, in no split, and every label well covered."""
    splits = load(str(Path(__file__).parent.parent / "training" / "data" / name), None, seed=0)
    everything = splits.train + splits.validation + splits.test
    keys = ["".join(filter(str.isalnum, row.text.lower())) for row in everything]
    assert len(set(keys)) == len(keys)
    minimum_rows, minimum_labels = {"device_reviews": (600, 3), "support_tickets": (800, 8)}[name]
    assert len(everything) >= minimum_rows
    assert len(splits.labels) >= minimum_labels
    assert min(Counter(row.label for row in splits.test).values()) >= 20
    openings = Counter(" ".join(row.text.lower().split()[:4]) for row in everything)
    assert max(openings.values()) <= 4, "these texts look like they come from a template"
