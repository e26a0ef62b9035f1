"""What becomes of an adapter's record, whatever happens to it in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.manifest import Manifest
from server.record import MOST_PREVIOUS, UNREADABLE, AdapterCard, Record, Refusal, Target

MANIFEST = Manifest("lora", ("no", "yes"), "single_label", 128, "mean", 1.0, "base", "sha256:0", "sha256:0")
VERSIONS = ("v0", "v1", "v2", "v3", "v4", "v5")
NO_ROOT = Refusal("storage_failed", "the folder cannot be read")

Change = Callable[[Record], Record]


def card(version: str, source: str | None = None) -> AdapterCard:
    return AdapterCard("mail", version, MANIFEST, 100, source=source)


def put(version: str, activate: bool = True) -> Change:
    """As a caller does."""

    def put(record: Record) -> Record:
        alias = (Target(version),) if activate or not record.alias else record.alias
        return record.with_version(card(version, f"file://{version}")).standing_for(alias)

    return put


def follow(version: str, seen: str | None) -> Change:
    return lambda record: replace(record.following(card(version, seen)), seen=seen)


def split(versions: list[str]) -> Change:
    def stand(record: Record) -> Record:
        there = tuple(Target(version, 0.5) for version in versions if version in record.versions)
        return record.standing_for(there) if there else record

    return stand


def lose(version: str) -> Change:
    """Its files are gone when the server starts again."""

    def lose(record: Record) -> Record:
        if version not in record.versions or not record.versions[version].source:
            return record
        lost = {**record.lost, version: (f"file://{version}", "2026-01-01T00:00:00Z")}
        return replace(record.without([version]), lost=lost).settled(None)

    return lose


def unfollow(record: Record) -> Record:
    return record.unfollowed()


def prune(keep_versions: int) -> Change:
    return lambda record: record.pruned(keep_versions)


VERSION = st.sampled_from(VERSIONS)
CHANGES = st.lists(
    st.one_of(
        st.builds(put, VERSION, st.booleans()),
        st.builds(follow, VERSION, st.sampled_from([None, "s3://bucket/mail"])),
        st.builds(split, st.lists(VERSION, min_size=1, max_size=3, unique=True)),
        st.builds(lose, VERSION),
        st.just(unfollow),
        st.builds(prune, st.integers(0, 3)),
    ),
    max_size=40,
)


@given(CHANGES)
def test_an_id_stands_for_versions_that_are_there_whatever_happened(changes: list[Change]) -> None:
    record = Record("mail")
    for change in changes:
        record = change(record)
        assert {target.version for target in record.alias} <= record.versions.keys()
        assert bool(record.alias) == bool(record.versions)
        assert not record.versions.keys() & record.lost.keys()
        assert len(record.previous) <= MOST_PREVIOUS
        assert record.settled(None) == record


@given(CHANGES, st.integers(0, 3))
def test_pruning_keeps_what_is_in_use_and_the_newest(changes: list[Change], keep_versions: int) -> None:
    record = Record("mail")
    for change in changes:
        record = change(record)
    pruned = record.pruned(keep_versions)
    in_use = {target.version for target in record.alias} | {record.followed, *list(record.versions)[-1:]}
    assert in_use & record.versions.keys() <= pruned.versions.keys()
    beside = [one for one in pruned.versions.values() if one.source and one.version not in in_use]
    assert len(beside) + len(pruned.lost) <= max(keep_versions, 0)
    assert pruned.pruned(keep_versions) == pruned


def test_pruning_lets_go_first_of_what_the_id_has_not_stood_for_longest() -> None:
    record = Record("mail")
    for version in ("v0", "v1", "v2", "v1", "v3"):
        record = put(version)(record)
    # beside v3, in use: it last stood for v1, before that for v2, before that for v0
    assert [sorted(record.pruned(count).versions) for count in (3, 2, 1, 0)] == [
        ["v0", "v1", "v2", "v3"],
        ["v1", "v2", "v3"],
        ["v1", "v3"],
        ["v3"],
    ]


def test_going_back_passes_over_what_is_not_there_any_more() -> None:
    record = Record("mail")
    for version in ("v0", "v1", "v2"):
        record = put(version)(record)
    assert record.previous[record.last_that_can_be() or 0] == (Target("v1"),)
    record = record.without(["v1"])
    assert record.last_that_can_be() == 0
    assert record.without(["v0"]).last_that_can_be() is None


def test_only_so_much_is_remembered() -> None:
    record = Record("mail")
    for index in range(MOST_PREVIOUS + 5):
        record = put(VERSIONS[index % 2])(record)
    assert record.previous == tuple((Target(VERSIONS[index % 2]),) for index in range(4, MOST_PREVIOUS + 4))


def test_an_id_goes_along_with_its_folder_unless_it_stands_for_more() -> None:
    first = Record("mail").following(card("v0"))
    second = first.following(card("v1"))
    assert second.alias == (Target("v1"),)
    assert list(second.versions) == ["v1"]
    both = put("v2")(first).standing_for((Target("v0", 0.9), Target("v2", 0.1)))
    assert both.following(card("v1")).alias == (Target("v2", 0.1),)
    assert put("v2")(first).following(card("v1")).alias == (Target("v2"),)


@pytest.mark.parametrize(
    ("seen", "left"), [("s3://bucket/mail", []), (None, ["v0"])], ids=["from a bucket", "put by itself"]
)
def test_what_was_fetched_goes_with_its_bucket_only(seen: str | None, left: list[str]) -> None:
    record = replace(Record("mail").following(card("v0", "s3://bucket/mail")), seen=seen)
    assert list(record.unfollowed().versions) == left


def test_what_its_bucket_held_before_is_kept_for_going_back() -> None:
    record = Record("mail")
    for version in ("v0", "v1"):
        record = follow(version, "s3://bucket/mail")(record)
    assert list(record.versions) == ["v0", "v1"]
    assert record.alias == (Target("v1"),)
    on_trial = record.standing_for((Target("v0"),))
    assert (list(on_trial.unfollowed().versions), on_trial.unfollowed().alias) == (["v0"], (Target("v0"),))


def test_while_the_folder_cannot_be_read_an_id_waits_for_what_it_stood_for() -> None:
    record = replace(Record("mail"), alias=(Target("v0"),))
    settled = record.settled(NO_ROOT)
    assert (settled.alias, settled.status) == ((), "failed")
    assert settled.refusal == Refusal(NO_ROOT.code, UNREADABLE)  # tenants read it: it names no folder of the operator's
    assert record.settled(None).alias == ()
