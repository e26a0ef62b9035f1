"""A change below a root is reported once, when it is whole; a root that fails takes nothing away."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import from_url

from server.adapter_files import FileState, Look
from server.errors import AdaptermuxError, SourceUnreachable
from server.watch import Changes, Listing, Watch, open_root
from tests.buckets import (
    ADAPTER,
    CONFIG,
    MANIFEST,
    WEIGHTS,
    FaultyStore,
    delete,
    make_bucket,
    moto,
    put,
    put_adapter,
    use_endpoint,
    write_adapter,
)

NOTHING = Changes()
NUMBERS = itertools.count()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    root.mkdir()
    return root


def watching(root: object, known: bool = True) -> Watch:
    """A watch to which what is there now is known, or not."""
    opened = open_root(str(root))
    return Watch(opened, opened.listing() if known else None)


def reports(watch: Watch) -> Changes:
    """What two looks at a root that nobody touches say together."""
    first, second = watch.look(), watch.look()
    assert first.error is second.error is None
    return Changes(first.appeared + second.appeared, first.changed + second.changed, first.gone + second.gone)


def test_a_folder_that_appears_changes_and_goes_is_reported_once_each(root: Path) -> None:
    watch = watching(root)
    folder = write_adapter(root / "reviews")
    assert reports(watch) == Changes(appeared=("reviews",))
    assert reports(watch) == NOTHING
    (folder / WEIGHTS).write_bytes(b"other weights")
    assert reports(watch) == Changes(changed=("reviews",))
    shutil.rmtree(folder)
    assert reports(watch) == Changes(gone=("reviews",))
    assert reports(watch) == NOTHING


def test_what_is_known_is_not_reported_until_it_changes(root: Path) -> None:
    write_adapter(root / "reviews")
    assert watching(root, known=False).look() == NOTHING  # not yet
    watch = watching(root)
    assert reports(watch) == NOTHING
    (root / "reviews" / MANIFEST).unlink()
    assert reports(watch) == Changes(changed=("reviews",))


def test_a_folder_is_not_reported_while_it_is_being_filled(root: Path) -> None:
    watch = watching(root)
    folder = write_adapter(root / "reviews", {CONFIG: b"{}"})
    assert watch.look() == NOTHING
    with (folder / WEIGHTS).open("wb", buffering=0) as file:
        for _ in range(5):
            file.write(bytes(1000))
            assert watch.look() == NOTHING
    assert reports(watch) == Changes(appeared=("reviews",))


def test_a_folder_that_stays_unfinished_is_reported_so_that_its_owner_hears_of_it(root: Path) -> None:
    watch = watching(root)
    write_adapter(root / "reviews", {CONFIG: b"{}", "adapter_model.bin": b"pickle"})
    assert reports(watch) == Changes(appeared=("reviews",))
    write_adapter(root / "reviews", {WEIGHTS: b"weights"})
    assert reports(watch) == Changes(changed=("reviews",))


def test_a_folder_that_is_replaced_by_renaming_never_goes(root: Path, tmp_path: Path) -> None:
    write_adapter(root / "reviews")
    watch = watching(root)
    (root / "reviews").rename(tmp_path / "old")
    assert watch.look() == NOTHING
    write_adapter(tmp_path / "new", ADAPTER | {CONFIG: b"{}"}).rename(root / "reviews")
    assert reports(watch) == Changes(changed=("reviews",))


def test_a_file_of_the_same_size_and_time_in_the_place_of_another_is_a_change(root: Path) -> None:
    weights = write_adapter(root / "reviews") / WEIGHTS
    watch = watching(root)
    status = weights.stat()
    (weights.parent / "new").write_bytes(bytes(status.st_size))
    os.utime(weights.parent / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (weights.parent / "new").rename(weights)
    assert reports(watch) == Changes(changed=("reviews",))


def test_hidden_names_and_other_files_are_left_out(root: Path) -> None:
    watch = watching(root)
    write_adapter(root / ".reviews-being-written")
    (root / "README.md").write_text("")
    (root / "loop").symlink_to(root / "loop")
    (root / "nowhere").symlink_to(root / "missing")
    assert reports(watch) == NOTHING


def test_a_swap_of_the_link_behind_a_kubernetes_volume_is_a_change(root: Path) -> None:
    write_adapter(root / "..2026_11_01" / "reviews")
    (root / "..data").symlink_to("..2026_11_01")
    (root / "reviews").symlink_to("..data/reviews")
    watch = watching(root)
    write_adapter(root / "..2026_11_02" / "reviews")
    (root / "..data_tmp").symlink_to("..2026_11_02")
    (root / "..data_tmp").rename(root / "..data")
    shutil.rmtree(root / "..2026_11_01")
    assert reports(watch) == Changes(changed=("reviews",))


def test_a_file_name_that_is_no_text_does_no_harm(root: Path) -> None:
    watch = watching(root)
    write_adapter(Path(os.fsdecode(os.fsencode(root) + b"/re\xff")))
    assert [os.fsencode(name) for name in reports(watch).appeared] == [b"re\xff"]


def test_a_root_that_vanishes_takes_no_adapter_with_it(root: Path) -> None:
    write_adapter(root / "reviews")
    watch = watching(root)
    root.rename(root.parent / "elsewhere")
    for _ in range(3):
        changes = watch.look()
        assert isinstance(changes.error, SourceUnreachable)
        assert str(root) in str(changes.error)
        assert changes == Changes(error=changes.error)
    root.mkdir()  # as the empty folder below a volume that is not mounted
    for _ in range(3):
        changes = watch.look()
        assert "is it mounted?" in str(changes.error)
        assert changes == Changes(error=changes.error)
    root.rmdir()
    (root.parent / "elsewhere").rename(root)
    assert reports(watch) == NOTHING


def test_the_last_adapter_of_a_root_may_go(root: Path) -> None:
    write_adapter(root / "reviews")
    watch = watching(root)
    shutil.rmtree(root / "reviews")
    assert reports(watch) == Changes(gone=("reviews",))


def test_a_root_that_is_a_file_or_missing_is_an_error_of_the_look(root: Path) -> None:
    (root / "file").write_text("")
    for text in (root / "file", root / "missing"):
        assert isinstance(watching(text, known=False).look().error, SourceUnreachable)


def test_a_report_that_came_to_nothing_is_made_again(root: Path) -> None:
    write_adapter(root / "reviews")
    watch = watching(root)
    watch.report_again("reviews")
    watch.report_again("unknown")
    assert reports(watch) == Changes(changed=("reviews",))
    watch.report_again("reviews")
    shutil.rmtree(root / "reviews")
    assert reports(watch) == Changes(gone=("reviews",))


STATES = st.sampled_from([FileState(1, "a"), FileState(1, "b"), FileState(2, "a")])
LOOKS = st.dictionaries(st.sampled_from([CONFIG, WEIGHTS, MANIFEST]), STATES)
LISTINGS = st.dictionaries(st.sampled_from(["one", "two", "three"]), LOOKS)


class Played:
    """A root that says what it is told to; None: it cannot be looked at."""

    def __init__(self, listings: list[Listing | None], is_atomic: bool) -> None:
        self.is_atomic = is_atomic
        self._listings = iter(listings)

    def listing(self) -> Listing:
        listing = next(self._listings)
        if listing is None:
            raise SourceUnreachable("no")
        return listing

    def source(self, name: str) -> str | None:
        return None


@given(st.lists(st.none() | LISTINGS, max_size=8), LISTINGS, st.booleans())
def test_whatever_was_seen_the_reports_lead_to_what_is_there(
    before: list[Listing | None], last: Listing, is_atomic: bool
) -> None:
    watch = Watch(Played([*before, last, last, last], is_atomic))
    held: dict[str, Look] = {}
    for listing in [*before, last, last, last]:
        changes = watch.look()
        assert (changes.error is not None) == (listing is None)
        assert not set(changes.appeared) & held.keys()
        assert set(changes.changed) | set(changes.gone) <= held.keys()
        for name in (*changes.appeared, *changes.changed):
            assert listing is not None
            held[name] = listing[name]
        for name in changes.gone:
            del held[name]
    assert held == last
    assert changes == NOTHING  # two looks were enough


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of the test's own."""
    use_endpoint(monkeypatch, s3_url)
    name = f"bucket-{next(NUMBERS)}"
    make_bucket(name)
    return f"s3://{name}"


@pytest.mark.parametrize("prefix", ["", "/team/adapters"])
def test_objects_that_appear_change_and_go_are_reported_once_each(bucket: str, prefix: str) -> None:
    below = prefix.removeprefix("/") + "/" if prefix else ""
    put_adapter(bucket, "team/adapters-of-others/x")
    put(bucket, f"{below}README.md", b"")
    put(bucket, f"{below}.hidden/{CONFIG}", b"")
    put_adapter(bucket, f"{below}reviews")
    watch = watching(bucket + prefix)
    put_adapter(bucket, f"{below}tickets")
    assert watch.look() == Changes(appeared=("tickets",))  # at once: objects are never seen in part
    put(bucket, f"{below}tickets/{WEIGHTS}", b"other weights")
    put(bucket, f"{below}tickets/checkpoint-1/{WEIGHTS}", b"other weights")
    assert watch.look() == NOTHING
    assert watch.look() == Changes(changed=("tickets",))
    delete(bucket, [f"{below}reviews/{name}" for name in ADAPTER])
    assert reports(watch) == Changes(gone=("reviews",))
    assert reports(watch) == NOTHING


def test_objects_without_a_manifest_are_waited_for(bucket: str) -> None:
    watch = watching(bucket)
    put_adapter(bucket, "reviews", {CONFIG: b"{}", WEIGHTS: b"weights"})
    assert watch.look() == NOTHING
    put(bucket, f"reviews/{MANIFEST}", b"{}")
    assert watch.look() == Changes(appeared=("reviews",))


def test_a_bucket_that_is_emptied_or_gone_takes_no_adapter_with_it(bucket: str) -> None:
    put_adapter(bucket, "all/reviews")
    watch = watching(f"{bucket}/all")
    delete(bucket, [f"all/reviews/{name}" for name in ADAPTER])
    for _ in range(3):
        changes = watch.look()
        assert "holds nothing any more" in str(changes.error)
        assert changes == Changes(error=changes.error)
    put_adapter(bucket, "all/reviews")
    watch.look()
    assert watch.look().gone == ()


def test_more_objects_than_one_answer_holds_are_all_listed(bucket: str) -> None:
    names, store = [f"adapter-{index:03}" for index in range(340)], from_url(bucket)
    keys = [f"{name}/{file}" for name in names for file in ADAPTER]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: obstore.put(store, key, b"{}"), keys))
    listing = open_root(bucket).listing()
    assert list(listing) == names
    assert all(look.keys() == ADAPTER.keys() for look in listing.values())


@pytest.mark.parametrize("fault", ["forbidden", "missing", "unreachable"])
def test_a_bucket_that_cannot_be_listed_takes_no_adapter_with_it(
    bucket: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyStore({})
    try:
        if fault == "forbidden":
            store.before = lambda method, key: 403
        if fault != "missing":
            use_endpoint(monkeypatch, store.url if fault == "forbidden" else "http://127.0.0.1:9")
        root = open_root("s3://no-such-bucket" if fault == "missing" else bucket)
        watch = Watch(root, {"reviews": {CONFIG: FileState(1, "a")}})
        for _ in range(2):
            changes = watch.look()
            assert isinstance(changes.error, AdaptermuxError)
            assert changes == Changes(error=changes.error)
            assert "s3://" in str(changes.error)
    finally:
        store.close()


@pytest.mark.parametrize("text", ["s3://", "s3://b", "s3://bucket/../a", "gs://bucket//a"])
def test_a_root_that_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(AdaptermuxError):
        open_root(text)


def test_without_the_package_for_buckets_a_root_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(AdaptermuxError, match="pip install"):
        open_root("s3://bucket")
