"""Adapters are fetched whole and unmixed, from allowed places only, or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.adapter_files import FileState
from server.bucket import PART_BYTES, Bucket
from server.errors import (
    AdapterDamaged,
    AdaptermuxError,
    InvalidInput,
    PathEscape,
    PickleRefused,
    SourceForbidden,
    SourceNotFound,
    SourceUnreachable,
    StorageFailed,
)
from server.sources import Fetched, FolderSource, Limits, parse
from tests.buckets import (
    ADAPTER,
    CONFIG,
    LIMIT_S,
    MANIFEST,
    SECRET,
    WEIGHTS,
    FaultyStore,
    make_bucket,
    moto,
    put_adapter,
    use_endpoint,
    write_adapter,
)
from tests.hubs import COMMIT, Hub

ROOT = Path(__file__).parent.parent
ANY = ["s3:", "gs:", "hf:"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetch(text: str, into: Path, *roots: object, limits: Limits = Limits()) -> Fetched:  # noqa: B008  # frozen
    return parse(text, [str(root) for root in roots] or ANY).fetch(into, limits)


@pytest.mark.parametrize(
    "text",
    ["", "reviews", "/folder", "http://host/reviews", "file:", "file://host/folder", "FILE:/folder", "file:/a\0b",
     "file:/a\nb", "file:/" + "a" * 2000, "s3:", "s3://", "s3://b", "s3://bucket", "s3://bucket/", "s3:/bucket/a",
     "s3://bucket//a", "s3://bucket/a//b", "s3://bucket/a/../b", "s3://bucket/..", "s3://bucket/./a", "s3:///a",
     "s3://bucket/%2e%2e/a", "s3://bucket/a?versionId=1", "s3://bucket/a#b", "s3://bucket/a\\b", "s3://key@bucket/a",
     "gs://BUCKET/a", "s3://../a", "hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/b@../x", "hf:../b", "hf:a/..",
     "hf:a/b@x//y", "hf:a/b@/x", "hf:a/b@x y", "hf:a/b%2fc"],
)  # fmt: skip
def test_a_text_that_names_no_place_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, ["/", *ANY])
    assert caught.value.field == "source"


@pytest.mark.parametrize("text", ["s3://SECRETID:SECRETKEY@bucket/a", "https://me:SECRET@host/a", "hf:me:SECRET/a"])
def test_a_key_that_someone_put_into_a_source_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, ANY)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["file:/etc", "file:etc", "s3://bucket/a", "gs://bucket/a", "hf:a/b"])
def test_nothing_is_allowed_unless_said(text: str) -> None:
    with pytest.raises(SourceForbidden):
        parse(text, [])


@pytest.mark.parametrize(
    ("text", "root", "is_allowed"),
    [
        ("s3://bucket/a/b", "s3://bucket/a", True),
        ("s3://bucket/a/b", "s3://bucket/a/", True),
        ("s3://bucket/a/b", "s3://bucket", True),
        ("s3://bucket/a/b", "s3://", True),
        ("s3://bucket/ab", "s3://bucket/a", False),
        ("s3://bucket2/a", "s3://bucket", False),
        ("gs://bucket/a", "s3://bucket", False),
        ("s3://bucket/a", "/", False),
        ("hf:me/a@v1", "hf:me", True),
        ("hf:me/a@v1", "hf:me/a", True),
        ("hf:me/a", "hf:", True),
        ("hf:me/a@v1", "hf:me/a@v1", True),
        ("hf:me/a@v2", "hf:me/a@v1", False),
        ("hf:me/a", "hf:me/a@v1", False),
        ("hf:me/ab", "hf:me/a", False),
        ("hf:mee/a", "hf:me", False),
        ("file:/etc", "s3://bucket", False),
        ("file:/etc", "/", True),
        ("file:///etc", "/", True),
        ("file:/etc/x", "file:/etc", True),
    ],
)
def test_only_what_is_below_an_allowed_root_may_be_named(text: str, root: str, is_allowed: bool) -> None:
    if is_allowed:
        parse(text, ["/nowhere", root])
    else:
        with pytest.raises(SourceForbidden):
            parse(text, ["/nowhere", root])


def test_a_folder_is_copied_with_its_three_files_only(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "root" / "reviews", ADAPTER | {"modeling.py": b"", "optimizer.pt": b""})
    got = fetch(f"file:{folder}", tmp_path / "into", tmp_path / "root")
    assert contents(got.folder) == ADAPTER
    assert got.source == f"file:{folder}"
    assert got.num_bytes == sum(map(len, ADAPTER.values()))


def test_what_was_copied_stays_when_the_source_is_written_to(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "reviews")
    got = fetch(f"file:{folder}", tmp_path / "into", tmp_path)
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"other")
    assert contents(got.folder) == ADAPTER


def test_a_relative_name_is_looked_for_below_every_root(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    write_adapter(tmp_path / "second" / "reviews")
    got = fetch("file:reviews", tmp_path / "into", tmp_path / "first", tmp_path / "second")
    assert contents(got.folder) == ADAPTER


@pytest.mark.parametrize("name", ["../secret", "{tmp}/secret", "{tmp}/root/../secret", "link", "..", "{tmp}", "/"])
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path / "secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    for known in (True, False):  # whether it exists does not show
        with pytest.raises(SourceForbidden):
            parse("file:" + name.format(tmp=tmp_path) + ("" if known else "x"), [str(tmp_path / "root")])
        if name in ("link", "..", "/", "{tmp}"):
            break


def test_percent_signs_in_a_folder_name_are_themselves(tmp_path: Path) -> None:
    write_adapter(tmp_path / "secret")
    (tmp_path / "root").mkdir()
    with pytest.raises(SourceNotFound):
        fetch("file:%2e%2e/secret", tmp_path / "into", tmp_path / "root")


def test_a_file_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "root" / "reviews")
    (folder / CONFIG).rename(tmp_path / "config")
    (folder / CONFIG).symlink_to(tmp_path / "config")
    with pytest.raises(PathEscape, match=CONFIG):
        fetch(f"file:{folder}", tmp_path / "into", tmp_path / "root")
    assert not (tmp_path / "into").exists()


def test_links_within_the_roots_are_followed(tmp_path: Path) -> None:
    real = write_adapter(tmp_path / "root" / "..data" / "reviews")
    (tmp_path / "root" / "reviews").symlink_to(real)
    got = fetch("file:reviews", tmp_path / "into", tmp_path / "root")
    assert contents(got.folder) == ADAPTER


def test_a_loop_of_links_and_a_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SourceNotFound):
        fetch("file:loop", tmp_path / "into", tmp_path)
    folder = write_adapter(tmp_path / "reviews")
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(AdapterDamaged, match="not a file"):
        fetch("file:reviews", tmp_path / "into", tmp_path)
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, SourceNotFound),
        ({CONFIG: b"{}"}, AdapterDamaged),
        ({WEIGHTS: b"w"}, AdapterDamaged),
        ({CONFIG: b"{}", "adapter_model.bin": b"pickle"}, PickleRefused),
        ({"adapter_model.bin": b"pickle"}, PickleRefused),
        ({CONFIG: b"{}", WEIGHTS: b"w", "adapter_model.bin": b"pickle"}, None),
        ({CONFIG: b"{}", WEIGHTS: b"w"}, None),
        ({CONFIG: b"{}", WEIGHTS: b""}, None),  # its reader says what is wrong with it
    ],
)
def test_a_folder_that_is_no_adapter_is_refused_by_what_it_holds(
    tmp_path: Path, files: dict[str, bytes], error: type[AdaptermuxError] | None
) -> None:
    write_adapter(tmp_path / "reviews", files)
    if error is None:
        fetched = fetch("file:reviews", tmp_path / "into", tmp_path)
        assert contents(fetched.folder) == {name: files[name] for name in (CONFIG, WEIGHTS)}
    else:
        with pytest.raises(error):
            fetch("file:reviews", tmp_path / "into", tmp_path)
        assert not (tmp_path / "into").exists()


def test_sizes_are_taken_up_to_the_limit_and_no_further(tmp_path: Path) -> None:
    write_adapter(tmp_path / "reviews", {CONFIG: b"c" * 10, WEIGHTS: b"w" * 20})
    fetch("file:reviews", tmp_path / "into", tmp_path, limits=Limits(weights_bytes=20, text_bytes=10))
    for limits in (Limits(weights_bytes=19, text_bytes=10), Limits(weights_bytes=20, text_bytes=9)):
        with pytest.raises(AdapterDamaged, match=r"has (10|20) bytes, at most (9|19) are taken"):
            fetch("file:reviews", tmp_path / "past", tmp_path, limits=limits)
    assert not (tmp_path / "past").exists()


def test_a_fetch_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    write_adapter(tmp_path / "reviews")
    with pytest.raises(SourceUnreachable, match="too long"):
        fetch("file:reviews", tmp_path / "into", tmp_path, limits=Limits(fetch_s=0))
    assert not (tmp_path / "into").exists()


@dataclass(frozen=True)
class WrittenWhileRead(FolderSource):
    """Its weights are written to in the middle of being read."""

    def _read(self, name: str, state: FileState) -> Iterator[bytes]:
        for chunk in FolderSource._read(self, name, state):
            yield chunk
            if name == WEIGHTS:
                write_adapter(self.path, {CONFIG: b'{"peft_type": "IA3", "x": 1}', WEIGHTS: bytes(3 << 20)})


def test_a_folder_that_is_written_to_while_it_is_copied_gives_no_mix(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "reviews", {CONFIG: b"{}", WEIGHTS: b"w" * (3 << 20)})
    source = WrittenWhileRead(folder, (tmp_path,))
    with pytest.raises(SourceUnreachable, match="changed while it was read"):
        source.fetch(tmp_path / "into", Limits())
    assert not (tmp_path / "into").exists()


@pytest.fixture
def _small_disk() -> Iterator[None]:
    """No file of this process may grow beyond a megabyte: writing it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "large", {CONFIG: b"{}", WEIGHTS: bytes(3 << 20)})


@pytest.mark.usefixtures("large", "_small_disk")
def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=f"{WEIGHTS}` cannot be written"):
        fetch("file:large", tmp_path / "into", tmp_path)
    assert not (tmp_path / "into").exists()


def test_a_folder_that_cannot_be_made_is_told_and_one_that_exists_is_left_alone(tmp_path: Path) -> None:
    write_adapter(tmp_path / "reviews")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("")
    for into in (tmp_path / "file" / "into", tmp_path / "mine", tmp_path / "missing" / "into"):
        with pytest.raises(StorageFailed, match="cannot be made"):
            fetch("file:reviews", into, tmp_path)
    assert (tmp_path / "mine" / "note").exists()


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def _s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, s3_url)
    make_bucket("adapters")


@pytest.fixture
def faulty() -> Iterator[FaultyStore]:
    store = FaultyStore({f"a/{name}": data for name, data in ADAPTER.items()})
    yield store
    store.close()


@pytest.mark.usefixtures("_s3")
def test_objects_below_a_prefix_are_fetched(tmp_path: Path) -> None:
    put_adapter("s3://adapters", "team one/réviews", ADAPTER | {"README.md": b""})
    got = fetch("s3://adapters/team one/réviews", tmp_path / "into")
    assert contents(got.folder) == ADAPTER
    assert got.source == "s3://adapters/team one/réviews"
    assert got.files == Bucket("s3", "adapters").look("team one/réviews")


@pytest.mark.usefixtures("_s3")
def test_objects_are_fetched_part_by_part(tmp_path: Path) -> None:
    files = ADAPTER | {WEIGHTS: os.urandom(2 * PART_BYTES + 1)}
    put_adapter("s3://adapters", "parts", files)
    assert contents(fetch("s3://adapters/parts", tmp_path / "into").folder) == files


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"README.md": b""}, SourceNotFound),
        ({CONFIG: b"{}"}, AdapterDamaged),
        ({CONFIG: b"{}", "adapter_model.bin": b"pickle"}, PickleRefused),
        ({CONFIG: b"{}", WEIGHTS: b"w" * 101}, AdapterDamaged),
        ({CONFIG: b"{}", WEIGHTS: b"w" * 100}, None),
    ],
)
def test_objects_that_are_no_adapter_are_refused_by_what_they_are(
    tmp_path: Path, files: dict[str, bytes], error: type[AdaptermuxError] | None
) -> None:
    prefix = tmp_path.name
    put_adapter("s3://adapters", prefix, files)
    if error is None:
        fetch(f"s3://adapters/{prefix}", tmp_path / "into", limits=Limits(weights_bytes=100))
        return
    with pytest.raises(error):
        fetch(f"s3://adapters/{prefix}", tmp_path / "into", limits=Limits(weights_bytes=100))
    assert not (tmp_path / "into").exists()


@pytest.mark.usefixtures("_s3")
@pytest.mark.parametrize("text", ["s3://adapters/nowhere", "s3://no-such-bucket/a"])
def test_a_prefix_or_bucket_that_is_not_there_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceNotFound, match=text):
        fetch(text, tmp_path / "into")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_connection_that_is_cut_once_is_resumed(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    use_endpoint(monkeypatch, faulty.url)
    faulty.cut_after, faulty.num_cuts = 100, 1
    assert contents(fetch(f"{scheme}://bucket/a", tmp_path / "into").folder) == ADAPTER
    assert faulty.num_cuts == 0


def refused(faulty: FaultyStore, into: Path, monkeypatch: pytest.MonkeyPatch, timeout: str = "10s") -> str:
    """Fetch what cannot be fetched: nothing is left, and the message and its trace hold no secret."""
    use_endpoint(monkeypatch, faulty.url, timeout)
    with pytest.raises(SourceUnreachable) as caught:
        fetch("s3://bucket/a", into)
    assert not into.exists()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    message = str(caught.value)
    assert "s3://bucket" in message
    assert not any(secret in message for secret in (SECRET, "SECRETID", "127.0.0.1", faulty.url.rpartition(":")[2]))
    return message


def test_a_connection_that_is_always_cut_is_told(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.cut_after = 10
    assert "cannot be read" in refused(faulty, tmp_path / "into", monkeypatch)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_do_not_suffice_are_told(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    faulty.before = lambda method, key: status
    assert "credentials" in refused(faulty, tmp_path / "into", monkeypatch)


def test_a_store_that_fails_is_told_after_a_few_tries(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.before = lambda method, key: 503 if method == "GET" else None
    assert "answered 503" in refused(faulty, tmp_path / "into", monkeypatch)
    assert sum(request.startswith("GET") for request in faulty.requests) == 4


def test_a_store_that_does_not_answer_is_left_after_its_time(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = threading.Event()
    faulty.before = lambda method, key: 500 if silence.wait(LIMIT_S) else None
    try:
        assert "in time" in refused(faulty, tmp_path / "into", monkeypatch, timeout="100ms")
    finally:
        silence.set()


def test_a_store_that_is_not_there_is_told(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.url = "http://127.0.0.1:9"
    assert "cannot be connected to" in refused(faulty, tmp_path / "into", monkeypatch)


def test_variables_that_cannot_be_used_are_told(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "AWS_" in refused(faulty, tmp_path / "into", monkeypatch, timeout="soon")


def test_an_object_that_is_replaced_between_its_parts_gives_no_mix(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"a/{WEIGHTS}"
    faulty.objects[key] = b"1" * (PART_BYTES + 1)

    def replace_after_first_part(method: str, asked: str) -> None:
        if method == "GET" and faulty.requests.count(f"GET {key}") == 2:
            faulty.objects[key] = b"2" * (PART_BYTES + 1)

    faulty.before = replace_after_first_part
    assert "was replaced while it was read" in refused(faulty, tmp_path / "into", monkeypatch)


def test_an_object_that_is_replaced_after_it_was_read_is_noticed(
    tmp_path: Path, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_config(method: str, asked: str) -> None:
        if method == "GET" and asked == f"a/{WEIGHTS}":
            faulty.objects[f"a/{CONFIG}"] = b'{"peft_type": "IA3"}'

    faulty.before = replace_config
    assert "changed while it was read" in refused(faulty, tmp_path / "into", monkeypatch)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_without_the_package_for_buckets_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SourceForbidden, match=r"pip install 'adaptermux\[cloud\]'"):
        fetch(f"{scheme}://bucket/a", tmp_path / "into")


FETCH = """
import json, sys
from pathlib import Path
from server.errors import AdaptermuxError
from server.sources import Limits, parse
try:
    got = parse(sys.argv[1], ["hf:me"]).fetch(Path(sys.argv[2]), Limits(weights_bytes=1000))
    print(json.dumps([got.source, sorted(path.name for path in got.folder.iterdir())]))
except AdaptermuxError as error:
    print(json.dumps([error.code, str(error)]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(ADAPTER | {"modeling.py": b"code", "README.md": b"text"})
    yield hub
    hub.close()


def fetch_from_hub(text: str, into: Path, endpoint: str, home: Path, offline: bool = False) -> tuple[str, object]:
    """Fetch in a process of its own, as the library reads its variables when it is imported."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_TOKEN": "SECRETTOKEN",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FETCH, text, str(into)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | variables,
        timeout=LIMIT_S,
    )
    assert "SECRET" not in done.stdout + done.stderr
    assert "%" not in done.stderr  # no progress bar
    first, second = json.loads(done.stdout)
    return first, second


def test_a_hub_is_asked_for_the_three_files_and_its_cache_answers_offline(tmp_path: Path, hub: Hub) -> None:
    home = tmp_path / "home"
    got = fetch_from_hub("hf:me/reviews@v1", tmp_path / "one", hub.url, home)
    assert got == (f"hf:me/reviews@{COMMIT}", sorted(ADAPTER))
    assert contents(tmp_path / "one") == ADAPTER
    assert not any(path.is_symlink() for path in (tmp_path / "one").iterdir())
    assert sorted(hub.downloads) == sorted(ADAPTER)

    fetch_from_hub("hf:me/reviews", tmp_path / "two", hub.url, home)
    assert contents(tmp_path / "two") == ADAPTER
    assert len(hub.downloads) == 3  # the cache had them

    got = fetch_from_hub(f"hf:me/reviews@{COMMIT}", tmp_path / "three", "http://127.0.0.1:9", home, offline=True)
    assert got == (f"hf:me/reviews@{COMMIT}", sorted(ADAPTER))
    [config] = home.rglob(f"snapshots/{COMMIT}/{CONFIG}")
    (config.parent / "adapter_model.bin").write_bytes(bytes(17 << 20))  # beside weights it does not matter
    fetch_from_hub("hf:me/reviews", tmp_path / "five", "http://127.0.0.1:9", home, offline=True)
    assert contents(tmp_path / "five") == ADAPTER

    got = fetch_from_hub("hf:me/other", tmp_path / "four", "http://127.0.0.1:9", home, offline=True)
    assert got[0] == "source_not_found"


@pytest.mark.parametrize(
    ("text", "files", "status", "code"),
    [
        ("hf:me/other", ADAPTER, 200, "source_not_found"),
        ("hf:me/reviews@v9", ADAPTER, 200, "source_not_found"),
        ("hf:you/reviews", ADAPTER, 200, "source_forbidden"),
        ("hf:me/reviews", ADAPTER, 403, "source_unreachable"),
        ("hf:me/reviews", ADAPTER, 500, "source_unreachable"),
        ("hf:me/reviews", {CONFIG: b"{}", "adapter_model.bin": b"pickle"}, 200, "pickle_refused"),
        ("hf:me/reviews", {CONFIG: b"{}", WEIGHTS: bytes(1001)}, 200, "adapter_damaged"),
    ],
)
def test_a_model_that_cannot_be_had_is_told_before_anything_is_downloaded(
    tmp_path: Path, hub: Hub, text: str, files: dict[str, bytes], status: int, code: str
) -> None:
    hub.files, hub.status = files, status
    assert fetch_from_hub(text, tmp_path / "into", hub.url, tmp_path / "home")[0] == code
    assert hub.downloads == []
    assert not (tmp_path / "into").exists()


def test_a_branch_that_moves_while_it_is_read_gives_no_mix(tmp_path: Path, hub: Hub) -> None:
    hub.commit_of_files = COMMIT[::-1]
    code, message = fetch_from_hub("hf:me/reviews", tmp_path / "into", hub.url, tmp_path / "home")
    assert code == "source_unreachable"
    assert "moved to another commit" in str(message)
    assert not (tmp_path / "into").exists()


def test_a_hub_that_is_not_there_is_told(tmp_path: Path) -> None:
    got = fetch_from_hub("hf:me/reviews", tmp_path / "into", "http://127.0.0.1:9", tmp_path / "home")
    assert got[0] == "source_unreachable"
