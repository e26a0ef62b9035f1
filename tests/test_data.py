"""Reading data sets and cutting them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.errors import DataError
from server.manifest import MAX_LABELS, ProblemType
from training.data import Asked, Row, load, take, targets
from training.sources import Columns

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


@given(st.lists(st.integers(0, 30), min_size=40, max_size=200), st.integers(0, 3))
def test_a_text_that_is_there_many_times_lies_on_one_side(numbers: list[int], seed: int) -> None:
    assume(len(set(numbers)) > 10)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "all.csv"
        path.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in [*numbers, 0, 1]))
        splits = load(str(path), None, seed)
    parts = [{row.text for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len({*numbers, 0, 1})
    assert sum(map(len, splits.by_name().values())) == len(numbers) + 2


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


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def labelled(count: int) -> str:
    return "".join(f"text {i},{'yes' if i % 2 else 'no'}\n" for i in range(count))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\nhello, world,pos\n", "row 1 has 3 fields, the header has 2"),
        ("text,label\nfine,pos\nhello\n", "row 2 has 1 field, the header has 2"),
        ("text,label\nfine,pos\nhello,\n", "row 2: `label` is empty"),
        ("text,label,label\nhello,a,b\n", "`label` twice"),
        ("text,label, label\nhello,a,b\n", "`label` twice"),
        ("text,label\nhello,pos\ntext,label\nbye,neg\n", "row 2 repeats the header"),
        ("text,label\nhello,pos\n\ufefftext,label\nbye,neg\n", "row 2 repeats the header"),
        ("text,label\nhel\0lo,pos\n", "row 1 holds a NUL"),
        ("text,label\nhello,pos\n\0\0\0", "row 2 holds a NUL"),
        ('text,label\nhi,x\n"hello,x\nbye,y\n', "line 3"),
    ],
)
def test_a_csv_file_that_can_be_read_in_two_ways_is_refused_with_the_place(
    tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(str(tmp_path), None, seed=0)
    assert "train.csv" in str(caught.value)


def test_an_open_quote_that_swallows_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + labelled(30) + '"wide,no\nlong,yes\nit is 5",no\n' + labelled(30))
    with pytest.raises(DataError, match=re.escape("row 31: each of its 3 lines is a row by itself")):
        load(str(tmp_path), None, seed=0)


@pytest.mark.parametrize(
    "text",
    ["Dear Ann,\nyes", "Red, no\nwhite, or blue", "one, yes\ntwo, maybe\nthree", "a\n\nb", 'she said, ""no""\nx'],
)
def test_texts_of_several_lines_are_no_open_quotes(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.csv").write_text(HEADER + f'"{text}",no\n' + labelled(30))
    splits = load(str(tmp_path), None, seed=0)
    assert text.replace('""', '"') in {row.text for row in splits.train + splits.validation + splits.test}


def test_blanks_and_columns_without_a_name_in_a_csv_file_change_nothing(tmp_path: Path) -> None:
    """Spaces after commas, the nameless first column of pandas, empty lines, carriage returns, a byte order mark."""
    content = '\n, text, "text_pair",label,\n' + "".join(f'{i},a {i}, "b, {i}", {i % 2},\n' for i in range(30))
    (tmp_path / "train.csv").write_text(f"\ufeff{content}  \n\n".replace("\n", "\r\n"), newline="", encoding="utf-8")
    splits = load(str(tmp_path), None, seed=0)
    assert splits.labels == ("0", "1")
    assert all(row.text_pair == row.text.replace("a", "b,") for row in splits.train)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 is nested too deeply"),
        ('{"text": "a", "label": "x", "label": "y"}', "line 2 cannot be read: it has `label` twice"),
        (r'{"text": "a", "label": "\ud800"}', "line 2 cannot be read: "),
        ('["a"]', "line 2 is not an object"),
        ('{"text": "a"}', "row 2: `label` is empty"),
        ('{"text": 5, "label": "x"}', "row 2: `text` is 5, not text"),
        ('{"text": "a", "text_pair": ["b"], "label": "x"}', "row 2: `text_pair` is ['b'], not text"),
        ('{"text": "a", "text_pair": NaN, "label": "x"}', "row 2: `text_pair` is nan, not text"),
    ],
)
def test_a_json_line_that_is_not_a_row_is_refused_with_the_place(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"text": "a", "label": "x"}}\n{line}\n')
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(str(path), None, seed=0, problem_type="auto" if 'label": NaN' not in line else "single_label")
    assert str(path) in str(caught.value)


def test_a_label_in_many_brackets_is_refused_however_many(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    for depth in range(500, 1100):  # the parser's own limit lies among them
        path.write_text('{"text": "a", "label": ' + "[" * depth + "]" * depth + "}\n")
        with pytest.raises(DataError, match=re.escape(str(path))):
            load(str(path), None, seed=0)


def test_second_texts_are_found_though_the_first_row_has_none(tmp_path: Path) -> None:
    lines = [{"text": f"a {i}", "label": str(i % 2)} | ({"text_pair": f"b {i}"} if i else {}) for i in range(40)]
    splits = load(str(write_lines(tmp_path / "all.jsonl", *lines)), None, seed=0)
    pairs = {row.text: row.text_pair for row in splits.train + splits.validation + splits.test}
    assert pairs == {f"a {i}": f"b {i}" if i else None for i in range(40)}


def test_second_texts_under_two_names_are_refused(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "all.jsonl",
        {"text": "a", "text_pair": "b", "label": "x"},
        {"text": "a", "sentence2": "b", "label": "y"},
    )
    with pytest.raises(DataError, match="row 2 has `sentence2`, other rows have `text_pair`"):
        load(str(path), None, seed=0)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(text="a", label="a"), "`a` is asked for twice"),
        (Columns(text="a", text_pair="a", label="b"), "`a` is asked for twice"),
        (Columns(text="a", text_pair="b", label="b"), "`b` is asked for twice"),
        (Columns(text="label"), "columns text, text_pair, label, a, b"),
        (Columns(label="text"), "columns text, text_pair, label, a, b"),
    ],
)
def test_a_column_serves_for_one_thing(tmp_path: Path, columns: Columns, words: str) -> None:
    (tmp_path / "all.csv").write_text("text,text_pair,label,a,b\n" + "1,2,3,4,5\n" * 9)
    with pytest.raises(DataError, match=words):
        load(str(tmp_path / "all.csv"), None, seed=0, columns=columns)


def test_a_text_is_not_paired_with_itself(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("sentence1,sentence2,label\n" + "".join(f"a,b{i},{i % 2}\n" for i in range(30)))
    splits = load(str(tmp_path / "all.csv"), None, seed=0, columns=Columns(text="sentence2"))
    assert {(row.text[0], row.text_pair) for row in splits.train} == {("b", None)}


@pytest.mark.parametrize("header", ["text,hypothesis,label", "text,other,label", "text,text_pair,category"])
def test_a_split_with_other_columns_than_train_is_refused(tmp_path: Path, header: str) -> None:
    rows = "".join(f"a {i},b {i},{i % 2}\n" for i in range(30))
    (tmp_path / "train.csv").write_text("text,text_pair,label\n" + rows)
    (tmp_path / "test.csv").write_text(f"{header}\n{rows}")
    with pytest.raises(DataError, match=r"test\.csv.*train\.csv"):
        load(str(tmp_path), None, seed=0)


def test_a_split_in_two_files_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", 30)
    write_lines(tmp_path / "train.jsonl", {"text": "a", "label": "x"})
    with pytest.raises(DataError, match=r"both train\.csv and train\.jsonl"):
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


@pytest.mark.parametrize("hidden", [-1, None])
def test_hub_rows_without_a_label_are_left_out(hidden: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in SNLI, where -1 marks pairs on which the annotators do not agree; it is not the last of the labels."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    given = [0, 1, hidden]
    part = datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(60)], "label": [given[i % 3] for i in range(60)]}, features=features
    )
    found = datasets.DatasetDict({"train": part, "test": part})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: found)
    splits = load("hub:some/set", None, seed=0)
    assert len(splits.train) + len(splits.validation) == len(splits.test) == 40
    assert Counter(row.label for row in splits.test) == {"no": 20, "yes": 20}
    assert all((int(row.text[5:]) % 3 == 1) == (row.label == "yes") for row in splits.train)


def test_a_hub_test_split_without_a_column_of_labels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    train = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(40)], "label": ["a", "b"] * 20})
    found = datasets.DatasetDict({"train": train, "test": datasets.Dataset.from_dict({"text": ["secret"]})})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: found)
    assert len(load("hub:some/set", None, seed=0).test) == 8


@pytest.mark.parametrize(
    ("label", "words"), [([-1], "row 1: `label` is -1, which none of its 2"), (-1, "no rows with")]
)
def test_hub_labels_that_have_no_name_are_refused(label: object, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(names) if isinstance(label, list) else names}
    )
    train = datasets.Dataset.from_dict({"text": ["a"] * 9, "label": [label] * 9}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: datasets.DatasetDict({"train": train}))
    with pytest.raises(DataError, match=words):
        load("hub:some/set", None, seed=0)


def several_csv(path: Path, count: int) -> Path:
    """Every text is long or short, and loud or not, or neither."""
    given = ["", "long", "loud", "long|loud"]
    path.write_text("text,labels\n" + "".join(f"text {i},{given[i % 4]}\n" for i in range(count)), encoding="utf-8")
    return path


def test_several_labels_are_joined_by_bars_in_a_csv_file(tmp_path: Path) -> None:
    found = load(str(several_csv(tmp_path / "all.csv", 200)), None, seed=0, problem_type="multi_label")
    assert found.problem_type == "multi_label"
    assert found.labels == ("long", "loud")
    assert Counter(row.label for row in found.test) == {(): 10, ("long",): 10, ("loud",): 10, ("long", "loud"): 10}
    assert targets(found.test, found.labels, "multi_label").sum(0).tolist() == [20, 20]


def test_lists_in_json_lines_mean_several_labels(tmp_path: Path) -> None:
    given = [[], ["b", "a", "b"], [7]]
    lines = [json.dumps({"text": f"text {i}", "label": given[i % 3]}) for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    found = load(str(tmp_path), None, seed=0)
    assert found.problem_type == "multi_label"
    assert found.labels == ("7", "a", "b")
    assert {row.label for row in found.train} == {(), ("a", "b"), ("7",)}


def test_several_labels_of_the_hub_keep_their_names_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = datasets.ClassLabel(names=["zebra", "ant"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(names)})
    given = [[], [0], [1], [0, 1]]
    train = datasets.Dataset.from_dict(
        {"text": [f"text {i}" for i in range(40)], "labels": [given[i % 4] for i in range(40)]}, features=features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: datasets.DatasetDict({"train": train}))
    found = load("hub:some/set", None, seed=0)
    assert found.labels == ("zebra", "ant")
    assert {row.label for row in found.train} == {(), ("zebra",), ("ant",), ("ant", "zebra")}


def numbers_csv(path: Path, count: int) -> Path:
    lines = (f"text {i},text {i + 1},{i / 10},name{i % 2}\n" for i in range(count))
    path.write_text("text,text_pair,relatedness_score,label\n" + "".join(lines), encoding="utf-8")
    return path


def test_numbers_are_read_from_their_own_column_and_cut_by_rank(tmp_path: Path) -> None:
    path = str(numbers_csv(tmp_path / "all.csv", 200))
    found = load(path, 50, seed=0, problem_type="regression")
    assert found.labels == ("relatedness_score",)
    assert found.train[0].text_pair is not None
    tenths = Counter(int(row.label // 2) for row in found.train if isinstance(row.label, float))
    assert all(4 <= tenths[tenth] <= 6 for tenth in range(10))
    assert targets(found.train, found.labels, "regression").dtype == "float64"
    assert load(path, 50, seed=0).labels == ("name0", "name1")


def test_fractions_in_json_lines_mean_numbers_and_whole_numbers_do_not(tmp_path: Path) -> None:
    for name, unit in (("fractions", 0.5), ("wholes", 1)):
        lines = [json.dumps({"text": f"text {i}", "label": i % 5 * unit}) for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    assert load(str(tmp_path / "fractions.jsonl"), None, seed=0).problem_type == "regression"
    assert load(str(tmp_path / "wholes.jsonl"), None, seed=0).problem_type == "single_label"
    assert load(str(tmp_path / "wholes.jsonl"), None, seed=0, problem_type="regression").train[0].label in range(5)


def labels_of(path: Path, given: list[object], problem_type: Asked = "auto") -> tuple[str, tuple[str, ...]]:
    """What a file with these labels, each on twelve rows, is taken for."""
    lines = [{"text": f"text {i}", "label": label} for i, label in enumerate(given * 12)]
    splits = load(str(write_lines(path / "all.jsonl", *lines)), None, seed=0, problem_type=problem_type)
    return splits.problem_type, splits.labels


@pytest.mark.parametrize(
    ("given", "problem_type", "labels"),
    [
        ([0, 0.25, 0.5, 1], "regression", ("label",)),
        ([1, 2.0], "regression", ("label",)),
        ([0, 1, 2], "single_label", ("0", "1", "2")),
        (["0.5", "1"], "single_label", ("0.5", "1")),
        ([True, False], "single_label", ("False", "True")),
        ([" a", "a ", "b"], "single_label", ("a", "b")),
        ([[" a", "b"], ["a "], []], "multi_label", ("a", "b")),
        ([["a", "b"], "a |b"], "multi_label", ("a", "b")),
        ([[0, 1], [1]], "multi_label", ("0", "1")),
    ],
)
def test_labels_mean_the_same_however_they_are_written(
    tmp_path: Path, given: list[object], problem_type: ProblemType, labels: tuple[str, ...]
) -> None:
    assert labels_of(tmp_path, given) == (problem_type, labels)


def test_fractions_are_names_where_that_is_asked_for(tmp_path: Path) -> None:
    assert labels_of(tmp_path, [0.5, "n/a"], "single_label") == ("single_label", ("0.5", "n/a"))


@pytest.mark.parametrize(
    ("given", "problem_type", "words"),
    [
        ([0.5, "n/a"], "auto", "row 2: `label` is 'n/a', other rows have fractions; say what they mean with --problem"),
        ([0.5, True], "auto", "row 2: `label` is True, other rows have fractions"),
        ([0.5, None], "auto", "row 2: `label` is empty"),
        ([0.5, float("nan")], "auto", "row 2: `label` is nan, not a finite number"),
        (["a", float("nan")], "single_label", "row 2: `label` is nan, not one label"),
        (["a", " "], "auto", "row 2: `label` is empty"),
        (["a", {"b": 1}], "auto", "row 2: `label` is {'b': 1}, not one label"),
        (["a", {"b": 1}], "multi_label", "row 2: `label` has the label {'b': 1}"),
        (["a", 0.5], "multi_label", "row 2: `label` has the label 0.5"),
        (["a", True], "multi_label", "row 2: `label` has the label True"),
        ([1, "1_000"], "regression", "row 2: `label` is '1_000', not a finite number"),
        ([[0, 1, 1], [1, 0, 0]], "auto", "row 1: `label` is [0, 1, 1], as in every row as many zeros and ones; write"),
    ],
)
def test_labels_that_can_be_read_in_two_ways_are_refused_with_the_place(
    tmp_path: Path, given: list[object], problem_type: Asked, words: str
) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        labels_of(tmp_path, given, problem_type)


def test_more_labels_than_a_server_reads_are_refused(tmp_path: Path) -> None:
    for count in (MAX_LABELS, MAX_LABELS + 1):
        path = tmp_path / f"{count}.csv"
        path.write_text(HEADER + "".join(f"text {i},{i}\n" for i in range(count)))
        if count == MAX_LABELS:
            assert len(load(str(path), None, seed=0).labels) == count
        else:
            with pytest.raises(DataError, match="at most 10000"):
                load(str(path), None, seed=0)


@pytest.mark.parametrize(
    ("centre", "step", "fine"),
    [
        (1.7e9, 1e6, True),
        (1.7e9, 10, False),
        (-1.7e9, 10, False),
        (0, 2e-15, True),
        (0, 1e-15, False),
        (0.1, 1e-7, False),
        (2**23, 257 * 2**0.5, True),  # there float32 has whole numbers only
        (2**23, 255 * 2**0.5, False),
    ],
)
def test_numbers_whose_spread_a_server_could_not_answer_are_refused(
    tmp_path: Path, centre: float, step: float, fine: bool
) -> None:
    """The step is the distance of every other number from the centre: it is the spread times the root of 2."""
    numbers = [centre, centre + step, centre, centre - step] * 30
    lines = [{"text": f"text {i}", "stars": number} for i, number in enumerate(numbers)]
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / f"{split}.jsonl", *lines)
    columns = Columns(label="stars")
    if fine:
        found = load(str(tmp_path), None, 0, columns, "regression")
        assert set(targets(found.train, found.labels, "regression").tolist()) == set(numbers)
    else:
        with pytest.raises(DataError, match=r"`stars`.*float32"):
            load(str(tmp_path), None, 0, columns, "regression")


def test_numbers_that_one_far_away_makes_all_the_same_are_refused(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        lines = [{"text": f"text {i}", "label": i / 100 if i else 1e12} for i in range(100)]
        write_lines(tmp_path / f"{split}.jsonl", *lines)
    with pytest.raises(DataError, match=r"`label` has 100 different numbers from 0\.01 to 1e\+12"):
        load(str(tmp_path), None, seed=0)


def test_a_few_rows_with_the_same_number_are_refused(tmp_path: Path) -> None:
    lines = [{"text": f"text {i}", "label": i % 2 / 2} for i in range(40)]
    path = write_lines(tmp_path / "all.jsonl", *lines)
    with pytest.raises(DataError, match="same number"):
        load(str(path), 1, seed=0)


def test_hidden_numbers_of_a_hub_test_split_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    train = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(40)], "label": [i / 4 for i in range(40)]})
    hidden = datasets.Dataset.from_dict({"text": ["secret"] * 3, "label": [-1.0] * 3})
    parts = datasets.DatasetDict({"train": train, "test": hidden})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: parts)
    found = load("hub:some/set", None, seed=0)
    assert found.problem_type == "regression"
    assert all(row.text != "secret" for row in found.test)


@pytest.mark.parametrize(
    ("problem_type", "label", "words"),
    [
        ("regression", "many", "row 2: `label` is 'many', not a finite number"),
        ("regression", "nan", "row 2: `label` is 'nan', not a finite"),
        ("regression", "inf", "not a finite number"),
        ("regression", "1e15", None),
        ("regression", "1.1e15", "not a finite number"),
        ("regression", "", "row 2: `label` is empty"),
        ("regression", "3", "same number"),
        ("multi_label", "", None),
        ("multi_label", "a|", "row 2: `label` has the label ''"),
        ("multi_label", "a| |b", "names joined by"),
    ],
)
def test_labels_that_do_not_fit_the_problem_are_refused_with_the_place(
    tmp_path: Path, problem_type: Asked, label: str, words: str | None
) -> None:
    first = "3" if problem_type == "regression" else "a"
    (tmp_path / "all.csv").write_text(HEADER + "".join(f"hello {i},{first}\nhi {i},{label}\n" for i in range(9)))
    if words is None:
        assert load(str(tmp_path / "all.csv"), None, seed=0, problem_type=problem_type).test
    else:
        with pytest.raises(DataError, match=re.escape(words)):
            load(str(tmp_path / "all.csv"), None, seed=0, problem_type=problem_type)


@pytest.mark.parametrize(
    ("problem_type", "label", "words"),
    [("auto", [True], "True"), ("auto", [["a"]], "['a']"), ("single_label", ["a"], "--problem-type multi_label")],
)
def test_odd_lists_are_refused(tmp_path: Path, problem_type: Asked, label: object, words: str) -> None:
    lines = [json.dumps({"text": f"text {i}", "label": label}) for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=re.escape(words)):
        load(str(tmp_path), None, seed=0, problem_type=problem_type)


def test_one_of_several_test_labels_without_training_rows_is_refused(tmp_path: Path) -> None:
    several_csv(tmp_path / "train.csv", 80)
    (tmp_path / "test.csv").write_text("text,labels\nhello,long|strange\n")
    with pytest.raises(DataError, match="strange"):
        load(str(tmp_path), None, seed=0, problem_type="multi_label")


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
