"""Adapters come, change, and go while the server runs: over HTTP, from folders, after crashes."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.errors import Conflict, SourceUnreachable, StorageFailed
from server.record import Record
from server.residency import key_of
from server.service import Service
from server.settings import Settings
from server.watch import FolderRoot, Listing
from server.weights_file import read_header
from tests.seeded import make_adapter, peft_configs
from tests.serving import until
from tests.test_adapter_folder import add_manifest

CONFIGS = ("lora-qv", "ia3-paper", "head")

Start = Callable[..., AbstractContextManager[tuple[Service, TestClient]]]


@pytest.fixture(scope="module")
def made(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters to fetch: v0, v1, v2 of different methods and labels."""
    root = tmp_path_factory.mktemp("made")
    for seed, config in enumerate(CONFIGS):
        make_adapter(root / f"v{seed}", bert_base.folder, peft_configs("bert")[config], 3, seed=seed)
        add_manifest(root / f"v{seed}", bert_base, labels=tuple(f"v{seed}-{label}" for label in "abc"))
    return root


@pytest.fixture
def served(tmp_path: Path) -> Path:
    root = tmp_path / "served"
    root.mkdir()
    return root


@pytest.fixture
def start(served: Path, made: Path, bert_base: BaseModel) -> Start:
    """Start a server over the folders; starting it again is a restart."""

    @contextmanager
    def start(**more: Any) -> Iterator[tuple[Service, TestClient]]:
        given: dict[str, Any] = {"adapters": served, "source_root": str(made), "look_s": 0} | more
        fixed: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1}
        settings = Settings(base=str(bert_base.folder), **given, **fixed)
        with Service(settings) as service, TestClient(create_app(service.desk, 100_000)) as client:
            yield service, client

    return start


def put(client: TestClient, name: str, source: Path | None = None, status: int = 200, **more: Any) -> dict[str, Any]:
    body = more | ({"source": f"file:{source}"} if source else {})
    response = client.put(f"/v1/adapters/{name}", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def alias(client: TestClient, name: str, status: int = 200, **body: Any) -> dict[str, Any]:
    response = client.put(f"/v1/adapters/{name}/alias", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask(client: TestClient, name: str, status: int = 200, key: str | None = None) -> dict[str, Any]:
    headers = {"X-Routing-Key": key} if key is not None else {}
    response = client.post("/v1/classify", json={"adapter_id": name, "inputs": "word1"}, headers=headers)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def label_of(answer: dict[str, Any]) -> str:
    return str(answer["predictions"][0]["label"])


def test_a_put_adapter_is_served_at_once_and_a_second_put_takes_its_place(start: Start, made: Path) -> None:
    with start() as (service, client):
        ask(client, "topics", status=404)
        first = put(client, "topics", made / "v0")
        assert first["status"] == "ready"
        assert first["versions"][0]["source"] == f"file:{made / 'v0'}"
        assert ask(client, "topics")["version"] == first["version"]
        second = put(client, "topics", made / "v1")
        assert [one["version"] for one in second["versions"]] == [first["version"], second["version"]]
        answer = ask(client, "topics")
        assert (answer["version"], answer["method"]) == (second["version"], "ia3")
        assert label_of(answer).startswith("v1")
        old = ask(client, f"topics@{first['version']}")
        assert label_of(old).startswith("v0")
        assert service.store.stats().num_resident == 2
        assert "it has" in ask(client, "topics@000000000000", status=404)["detail"]


@pytest.mark.parametrize("preload", [0, 1, 1000])
def test_a_start_reads_no_more_adapters_than_it_is_told_to_and_has_room_for(
    start: Start, made: Path, served: Path, preload: int
) -> None:
    for number in range(6):
        shutil.copytree(made / "v0", served / f"a{number}")
    one = (made / "v0" / "adapter_model.safetensors").stat().st_size
    with start(preload=preload, adapter_bytes=2 * one + one // 2) as (service, client):
        assert service.store.stats().num_loads == min(preload, 2)
        ask(client, "a5")
        assert service.store.stats().num_loads == min(preload, 2) + 1
    with start(preload=0) as (service, _):
        assert service.store.stats().num_loads == 0


def test_the_old_version_leaves_memory_once_nobody_uses_it(start: Start, made: Path) -> None:
    with start() as (service, client):
        first = put(client, "topics", made / "v0")
        held = service.store.acquire("topics", first["version"]).result()
        put(client, "topics", made / "v1")
        assert service.store.stats().num_resident == 2
        service.store.release(held)
        assert service.store.stats().num_resident == 1


def test_what_cannot_be_served_leaves_everything_as_it_was(start: Start, made: Path, tmp_path: Path) -> None:
    bad = made / "bad"
    shutil.copytree(made / "v1", bad)
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)  # the digest no longer fits
    try:
        with start() as (service, client):
            first = put(client, "topics", made / "v0")
            problem = put(client, "topics", bad, status=422)
            assert problem["code"] == "adapter_damaged"
            assert "sha256" in problem["detail"]
            put(client, "others", bad, status=422)
            assert put(client, "topics", tmp_path, status=403)["code"] == "source_forbidden"
            assert put(client, "topics", made / "nothing", status=422)["code"] == "source_not_found"
            assert ask(client, "topics")["version"] == first["version"]
            ask(client, "others", status=404)
            kept = [path.name for path in (service.lifecycle._ledger._folder / "versions").glob("*/*")]
            assert kept == [first["version"]]
            assert not list(service.lifecycle._ledger._folder.glob("incoming*"))
    finally:
        shutil.rmtree(bad)


def test_a_restart_finds_versions_aliases_tags_and_pins_again(start: Start, made: Path) -> None:
    with start() as (_, client):
        first = put(client, "topics", made / "v0", tags=["triage", "b", "b"], pinned=True)
        second = put(client, "topics", made / "v1")
        put(client, "others", made / "v2")
        alias(client, "topics", versions=[{"version": first["version"], "weight": 3}, {"version": second["version"]}])
        before = client.get("/v1/adapters").json()
    with start() as (service, client):
        assert client.get("/v1/adapters").json() == before
        entry = client.get("/v1/adapters/topics").json()
        assert entry["tags"] == ["b", "triage"]
        assert entry["pinned"]
        assert entry["alias"] == [
            {"version": first["version"], "weight": 3},
            {"version": second["version"], "weight": 1},
        ]
        assert service.store.stats().num_resident >= 2  # pinned: loaded without being asked for
        assert [one["version"] for one in alias(client, "topics", rollback=True)["alias"]] == [second["version"]]


def test_rollback_goes_back_step_by_step(start: Start, made: Path) -> None:
    with start() as (_, client):
        versions = [put(client, "topics", made / f"v{number}")["version"] for number in range(3)]
        for wanted in (versions[1], versions[0]):
            assert alias(client, "topics", rollback=True)["version"] == wanted
            assert ask(client, "topics")["version"] == wanted
        assert "nothing else" in alias(client, "topics", rollback=True, status=409)["detail"]
        assert alias(client, "topics", version=versions[2])["version"] == versions[2]


def test_a_split_follows_its_weights_and_a_key_keeps_its_side(start: Start, made: Path) -> None:
    with start() as (service, client):
        old = put(client, "topics", made / "v0")["version"]
        new = put(client, "topics", made / "v1", activate=False)["versions"][-1]["version"]
        assert ask(client, "topics")["version"] == old
        resolve = service.catalog.resolve
        seen: dict[int, dict[str, str]] = {}
        for share in (10, 50):
            alias(
                client,
                "topics",
                versions=[{"version": old, "weight": 100 - share}, {"version": new, "weight": share}],
            )
            seen[share] = {str(key): resolve("topics", routing_key=str(key)).version for key in range(2000)}
            assert seen[share] == {key: resolve("topics", routing_key=key).version for key in seen[share]}
            part = list(seen[share].values()).count(new) / 2000
            assert abs(part - share / 100) < 0.04
            random_part = [resolve("topics").version for _ in range(2000)].count(new) / 2000
            assert abs(random_part - share / 100) < 0.05
        moved_back = [key for key in seen[10] if seen[10][key] == new and seen[50][key] == old]
        assert not moved_back  # who has the new version keeps it while its share grows
        assert ask(client, "topics", key="1")["version"] == seen[50]["1"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "version"),
        ({"version": "000000000000"}, "version"),
        ({"version": "0", "rollback": True}, "version"),
        ({"versions": []}, "versions"),
        ({"versions": [{"version": "0", "weight": 0}]}, "versions[0].weight"),
        ({"versions": [{"version": "0", "weight": "1e999"}]}, "versions[0].weight"),
        ({"rollback": False}, "rollback"),
    ],
)
def test_a_wrong_alias_is_422_and_names_the_field(start: Start, made: Path, body: dict[str, Any], field: str) -> None:
    with start() as (_, client):
        put(client, "topics", made / "v0")
        problem = alias(client, "topics", status=422, **body)
        assert problem["errors"][0]["field"] == field


def test_a_version_in_use_cannot_be_deleted_and_an_adapter_can(start: Start, made: Path) -> None:
    with start() as (service, client):
        first, second = (put(client, "topics", made / f"v{number}")["version"] for number in range(2))
        assert client.delete(f"/v1/adapters/topics@{second}").status_code == 409
        assert client.delete(f"/v1/adapters/topics@{first}").status_code == 204
        assert client.delete(f"/v1/adapters/topics@{first}").status_code == 404
        assert [one["version"] for one in client.get("/v1/adapters/topics").json()["versions"]] == [second]
        assert client.delete("/v1/adapters/topics@").status_code == 422
        assert client.delete("/v1/adapters/topics").status_code == 204
        ask(client, "topics", status=404)
        assert service.store.stats().num_known == 0
        assert not list((service.lifecycle._ledger._folder / "versions").glob("*"))
    with start() as (_, client):
        assert client.get("/v1/adapters").json()["adapters"] == []


def test_only_so_many_old_versions_are_kept(start: Start, made: Path) -> None:
    with start(keep_versions=1) as (_, client):
        versions = [put(client, "topics", made / f"v{number}")["version"] for number in range(3)]
        assert [one["version"] for one in client.get("/v1/adapters/topics").json()["versions"]] == versions[1:]


def test_a_fan_out_asks_a_list_or_a_tag_and_tells_failures_apart(start: Start, made: Path) -> None:
    with start() as (_, client):
        for number in range(3):
            put(client, f"a{number}", made / f"v{number}", tags=["triage"] if number else [])
        body = {"adapters": ["a0", "nobody", "a2", "a0"], "inputs": ["word1", "word2 word3"], "output": "logits"}
        results = client.post("/v1/classify/fanout", json=body).json()["results"]
        assert [one["adapter_id"] for one in results] == ["a0", "nobody", "a2"]
        assert results[1]["status"] == 404
        for one in (results[0], results[2]):
            alone = client.post(
                f"/v1/adapters/{one['adapter_id']}/classify", json={"inputs": body["inputs"], "output": "logits"}
            )
            for mine, its in zip(one["predictions"], alone.json()["predictions"], strict=True):
                assert mine["label"] == its["label"]
                assert mine["score"] == pytest.approx(its["score"], abs=1e-5)
        tagged = client.post("/v1/classify/fanout", json={"adapters": "tag:triage", "inputs": "word1"}).json()
        assert [one["adapter_id"] for one in tagged["results"]] == ["a1", "a2"]
        for adapters, status in (("tag:none", 404), ("a0", 422), ([], 422)):
            assert client.post("/v1/classify/fanout", json={"adapters": adapters, "inputs": "x"}).status_code == status
        many = {"adapters": [f"b{index}" for index in range(300)], "inputs": "word1"}
        assert client.post("/v1/classify/fanout", json=many).json()["code"] == "too_many_inputs"
        assert [one["adapter_id"] for one in client.get("/v1/adapters?tag=triage").json()["adapters"]] == ["a1", "a2"]


def look(service: Service) -> None:
    """Two looks: what is new is believed once it looks the same twice."""
    service.follower.look()
    service.follower.look()


def status_of(client: TestClient, name: str) -> str:
    return str(client.get(f"/v1/adapters/{name}").json().get("status"))


def test_folders_that_come_change_and_go_are_followed(start: Start, made: Path, served: Path) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        first = ask(client, "one")["version"]
        shutil.copytree(made / "v1", served / "two")
        look(service)
        assert ask(client, "two")["method"] == "ia3"
        shutil.copytree(made / "v2", served / ".one")
        shutil.rmtree(served / "one")
        (served / ".one").rename(served / "one")
        look(service)
        second = ask(client, "one")
        assert (second["method"], len(client.get("/v1/adapters/one").json()["versions"])) == ("head", 1)
        assert second["version"] != first
        shutil.rmtree(served / "two")
        look(service)
        ask(client, "two", status=404)
        assert service.store.stats().num_known == 1
        assert client.delete("/v1/adapters/one").status_code == 409


def test_a_bad_change_is_told_and_the_old_version_goes_on(start: Start, made: Path, served: Path) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        first = ask(client, "one")["version"]
        config = served / "one" / "adapter_config.json"
        good = config.read_text()
        config.write_text("{")
        look(service)
        entry = client.get("/v1/adapters/one").json()
        assert entry["status"] == "update_failed"
        assert "not JSON" in entry["refusal"]["reason"]
        assert ask(client, "one")["version"] == first
        assert 'adaptermux_adapters{status="update_failed"} 1.0' in client.get("/metrics").text
        config.write_text(good)
        look(service)
        assert status_of(client, "one") == "ready"


def test_a_folder_that_cannot_be_read_takes_nothing_away(start: Start, made: Path, served: Path) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        served.rename(served.with_name("away"))
        look(service)
        ask(client, "one")
        listed = client.get("/v1/adapters").json()
        assert "cannot be read" in listed["trouble"]["reason"]
        served.with_name("away").rename(served)
        look(service)
        assert client.get("/v1/adapters").json()["trouble"] is None


def test_what_is_loaded_while_its_folder_is_not_mounted_fails_until_it_is_again(
    start: Start, made: Path, served: Path
) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        version = ask(client, "one")["version"]
        served.rename(served.with_name("away"))
        served.mkdir()  # what is left of a folder that was mounted
        look(service)
        service.store.retire(key_of("one", version))
        assert ask(client, "one", status=503)["code"] == "load_failed"
        served.rmdir()
        served.with_name("away").rename(served)
        look(service)
        assert ask(client, "one")["version"] == version
        assert status_of(client, "one") == "ready"
        shutil.rmtree(served / "one")
        service.store.retire(key_of("one", version))
        ask(client, "one", status=503)
        look(service)
        ask(client, "one", status=404)


def test_an_id_may_have_a_folder_and_fetched_versions(start: Start, made: Path, served: Path) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        in_folder = ask(client, "one")["version"]
        fetched = put(client, "one", made / "v1")["version"]
        assert ask(client, "one")["version"] == fetched
        look(service)
        assert ask(client, "one")["version"] == fetched
    with start() as (service, client):
        assert ask(client, "one")["version"] == fetched
        assert alias(client, "one", rollback=True)["version"] == in_folder
        shutil.rmtree(served / "one")
        look(service)
        assert ask(client, "one")["version"] == fetched


def test_a_version_that_turns_out_damaged_is_told_and_can_be_put_again(start: Start, made: Path) -> None:
    with start() as (service, client):
        version = put(client, "topics", made / "v0")["version"]
        place = service.lifecycle._ledger.folder_of("topics", version) / "adapter_model.safetensors"
        good = place.read_bytes()
        place.write_bytes(good[:-4] + b"\0\0\0\1")
        service.store.retire(key_of("topics", version))
        assert "sha256" in ask(client, "topics", status=409)["detail"]
        assert status_of(client, "topics") == "failed"
        put(client, "topics", made / "v0")
        assert ask(client, "topics")["version"] == version
        assert status_of(client, "topics") == "ready"


@pytest.mark.parametrize("more", [{}, {"pinned": True}])
def test_a_damaged_version_that_is_put_again_is_pinned_as_it_was(
    start: Start, made: Path, more: dict[str, bool]
) -> None:
    with start() as (service, client):
        version = put(client, "topics", made / "v0", pinned=True)["version"]
        place = service.lifecycle._ledger.folder_of("topics", version) / "adapter_model.safetensors"
    place.write_bytes(place.read_bytes()[:-4] + b"\0\0\0\1")
    with start() as (service, client):
        until(lambda: status_of(client, "topics") == "failed")
        assert put(client, "topics", made / "v0", **more)["status"] == "ready"
        assert [one.is_pinned for one in service.store.residents()] == [True]
        put(client, "topics", pinned=False)
        assert [one.is_pinned for one in service.store.residents()] == [False]


def num_bytes(folder: Path) -> int:
    return read_header(folder / "adapter_model.safetensors").num_bytes


@pytest.mark.parametrize("is_fetched", [True, False])
def test_what_is_pinned_keeps_its_room_over_a_restart_whatever_has_come_into_the_folder(
    start: Start, made: Path, served: Path, is_fetched: bool
) -> None:
    small, large = sorted((made / f"v{number}" for number in range(3)), key=num_bytes)[1:]
    room = max(2 * num_bytes(small), num_bytes(large))
    if not is_fetched:
        shutil.copytree(small, served / "topics")
    with start(adapter_bytes=room) as (service, client):
        put(client, "topics", small if is_fetched else None, pinned=True)
        shutil.copytree(large, served / "large")
        look(service)
        before = client.get("/v1/adapters").json()["adapters"]
        assert {one["adapter_id"]: one["status"] for one in before} == {"large": "failed", "topics": "ready"}
    with start(adapter_bytes=room) as (service, client):
        until(lambda: service.store.stats().num_resident == 1)
        found = client.get("/v1/adapters").json()["adapters"]
        assert [(one["status"], one["refusal"]) for one in found] == [(one["status"], one["refusal"]) for one in before]
        assert [(one.adapter_id, one.is_pinned) for one in service.store.residents()] == [("topics", True)]


@pytest.mark.parametrize("is_fetched", [True, False])
def test_what_cannot_be_pinned_any_more_is_served_and_listed_with_the_reason(
    start: Start, made: Path, served: Path, is_fetched: bool
) -> None:
    room = num_bytes(made / "v0")
    if not is_fetched:
        shutil.copytree(made / "v0", served / "topics")
    with start() as (_, client):
        put(client, "topics", made / "v0" if is_fetched else None, pinned=True)
    with start(adapter_bytes=room) as (service, client):  # less than it had
        ask(client, "topics")
        for entry in (
            client.get("/v1/adapters/topics").json(),
            put(client, "topics", tags=["x"]),
            put(client, "topics", pinned=True),
        ):
            assert (entry["status"], entry["pinned"]) == ("update_failed", True)
            assert "would leave no room" in entry["refusal"]["reason"]
        assert not any(one.is_pinned for one in service.store.residents())
        unpinned = put(client, "topics", pinned=False)
        assert (unpinned["status"], unpinned["refusal"]) == ("ready", None)
    with start() as (_, client):
        assert status_of(client, "topics") == "ready"


def test_what_a_crash_left_behind_is_tidied_up(start: Start, made: Path) -> None:
    with start() as (service, client):
        version = put(client, "topics", made / "v0")["version"]
        state = service.lifecycle._ledger._folder
    (state / "incoming-1").mkdir()
    shutil.copytree(made / "v1", state / "versions" / "topics" / "111111111111")
    shutil.rmtree(state / "versions" / "topics" / version)
    with start() as (_, client):
        entry = client.get("/v1/adapters/topics").json()
        assert entry["status"] == "failed"
        assert version in entry["refusal"]["reason"]
        assert not list(state.glob("incoming*"))
        assert not list(state.glob("versions/*"))


def test_a_ledger_that_is_not_ours_stops_the_start(start: Start, served: Path) -> None:
    (served / ".adaptermux").mkdir()
    (served / ".adaptermux" / "ledger.json").write_text(json.dumps({"schema": 9}))
    with pytest.raises(Exception, match="schema 9"), start():
        pass


def test_a_disk_that_is_full_changes_nothing(start: Start, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with start() as (_, client):
        first = put(client, "topics", made / "v0")["version"]
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            assert "No space" in put(client, "topics", made / "v1", status=507)["detail"]
            assert "No space" in put(client, "topics", tags=["x"], status=507)["detail"]
            assert client.delete("/v1/adapters/topics").status_code == 507
        assert ask(client, "topics")["version"] == first
        assert client.get("/v1/adapters/topics").json()["tags"] == []


def test_flips_under_load_lose_nothing_and_mix_nothing_up(start: Start, made: Path) -> None:
    """Every answer is one version's labels and method throughout, and it is a version that the id stood for."""
    with start() as (_, client):
        versions = [put(client, "topics", made / f"v{number}")["version"] for number in range(3)]
        expected = dict(zip(versions, (("v0-", "lora"), ("v1-", "ia3"), ("v2-", "head")), strict=True))
        stop = threading.Event()

        def flip() -> None:
            for number in range(50):
                alias(client, "topics", version=versions[number % 3])
            stop.set()

        def load() -> int:
            num_answers = 0
            while not stop.is_set():
                answer = ask(client, "topics")
                prefix, method = expected[answer["version"]]
                assert all(score["label"].startswith(prefix) for score in answer["predictions"][0]["scores"])
                assert answer["method"] == method
                num_answers += 1
            return num_answers

        with ThreadPoolExecutor(9) as pool:
            loading = [pool.submit(load) for _ in range(8)]
            pool.submit(flip).result(60)
            assert sum(one.result(60) for one in loading) > 50


def damaged_copy(of: Path, name: str) -> Path:
    """A copy with the same configuration and manifest whose weights are others."""
    folder = of.with_name(name)
    shutil.copytree(of, folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    return folder


def state_of(service: Service) -> Path:
    return service.lifecycle._ledger._folder


def folders(state: Path) -> list[str]:
    return sorted(f"{path.parent.name}@{path.name}" for path in state.glob("versions/*/*"))


def test_a_damaged_copy_does_not_take_the_place_of_the_good_version(start: Start, made: Path, tmp_path: Path) -> None:
    bad = damaged_copy(made / "v0", "copy")
    try:
        with start() as (service, client):
            version = put(client, "topics", made / "v0")["version"]
            assert put(client, "topics", bad, status=422)["code"] == "adapter_damaged"
            service.store.retire(key_of("topics", version))
            assert ask(client, "topics")["version"] == version
        with start() as (_, client):
            assert ask(client, "topics")["version"] == version
    finally:
        shutil.rmtree(bad)


def test_puts_of_the_same_content_at_the_same_time_are_one_version(start: Start, made: Path) -> None:
    with start() as (service, client), ThreadPoolExecutor(8) as pool:
        for number in range(5):
            bodies = list(pool.map(lambda _, name=f"t{number}": put(client, name, made / "v0"), range(8)))
            assert len({body["version"] for body in bodies}) == 1
            assert ask(client, f"t{number}")["version"] == bodies[0]["version"]
            assert f"t{number}@{bodies[0]['version']}" in folders(state_of(service))


def test_puts_flips_and_deletes_of_one_id_leave_tables_and_disk_in_step(start: Start, made: Path) -> None:
    with start(keep_versions=1) as (service, client):

        def hurry(seed: int) -> None:
            for number in range(8):
                step = (seed + number) % 5
                if step < 3:
                    assert client.put("/v1/adapters/topics", json={"source": f"file:{made / f'v{step}'}"}).is_success
                elif step == 3:
                    assert client.delete("/v1/adapters/topics").status_code in (204, 404)
                else:
                    answer = client.put("/v1/adapters/topics/alias", json={"rollback": True})
                    assert answer.status_code in (200, 404, 409)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(hurry, range(6)))
        put(client, "topics", made / "v0")
        entry = client.get("/v1/adapters/topics").json()
        listed = sorted(f"topics@{one['version']}" for one in entry["versions"])
        assert folders(state_of(service)) == listed
        assert service.store.stats().num_known == len(listed)
        for key in listed:
            ask(client, key)


def test_a_server_with_another_base_forgets_nothing_that_was_fetched(
    start: Start, made: Path, served: Path, tmp_path: Path
) -> None:
    with start() as (service, client):
        versions = [put(client, "topics", made / f"v{number}")["version"] for number in range(2)]
        alias(client, "topics", version=versions[0])
        put(client, "others", made / "v2")
        kept = folders(state_of(service))
    with start(adapter_bytes=64) as (_, client):  # room for none of them
        assert status_of(client, "topics") == "failed"
        assert client.delete("/v1/adapters/others").status_code == 204  # the ledger is written
    with start() as (service, client):
        assert folders(state_of(service)) == [key for key in kept if key.startswith("topics")]
        assert status_of(client, "topics") == "ready"
        assert ask(client, "topics")["version"] == versions[0]


def test_a_lost_version_can_be_deleted_and_put_again(start: Start, made: Path) -> None:
    with start() as (service, client):
        first, second = (put(client, "topics", made / f"v{number}")["version"] for number in range(2))
        shutil.rmtree(state_of(service) / "versions" / "topics" / first)
        shutil.rmtree(state_of(service) / "versions" / "topics" / second)
    with start() as (_, client):
        assert status_of(client, "topics") == "failed"
        assert client.delete(f"/v1/adapters/topics@{first}").status_code == 204
        assert put(client, "topics", made / "v1")["version"] == second
        assert status_of(client, "topics") == "ready"
    with start() as (_, client):
        assert [one["version"] for one in client.get("/v1/adapters/topics").json()["versions"]] == [second]
        assert status_of(client, "topics") == "ready"


def test_an_adapter_is_not_deleted_by_a_version_without_a_name(start: Start, made: Path) -> None:
    with start() as (_, client):
        put(client, "topics", made / "v0")
        assert client.delete("/v1/adapters/topics@").status_code == 422
        ask(client, "topics")


def test_what_could_not_be_written_down_is_neither_pinned_nor_kept(
    start: Start, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFailed("the disk is full")

    with start(keep_versions=0) as (service, client):
        first = put(client, "topics", made / "v0")["version"]
        with monkeypatch.context() as patch:
            patch.setattr(service.lifecycle._ledger, "write", full)
            put(client, "topics", status=507, pinned=True)
            put(client, "topics", made / "v1", status=507)
            put(client, "others", made / "v1", status=507)
        assert not any(one.is_pinned for one in service.store.residents())
        assert service.store.stats().num_known == 1
        assert folders(state_of(service)) == [f"topics@{first}"]
        assert ask(client, "topics")["version"] == first


def test_a_version_that_was_just_put_is_never_pruned(start: Start, made: Path) -> None:
    with start(keep_versions=0) as (_, client):
        first = put(client, "topics", made / "v0")["version"]
        new = put(client, "topics", made / "v1", activate=False)["versions"][-1]["version"]
        assert new != first
        assert ask(client, f"topics@{new}")["version"] == new


def test_the_version_that_a_rollback_leads_to_is_kept_longer_than_one_that_was_rolled_back(
    start: Start, made: Path
) -> None:
    with start(keep_versions=1) as (_, client):
        good = put(client, "topics", made / "v0")["version"]
        put(client, "topics", made / "v1")
        alias(client, "topics", rollback=True)
        put(client, "topics", made / "v2")
        assert alias(client, "topics", rollback=True)["version"] == good


def test_a_version_both_put_and_in_the_folder_outlives_either(start: Start, made: Path, served: Path) -> None:
    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        version = ask(client, "one")["version"]
        assert put(client, "one", made / "v0")["version"] == version
        shutil.rmtree(served / "one")
        service.store.retire(key_of("one", version))
        assert ask(client, "one")["version"] == version  # read from what was fetched
        look(service)
        assert ask(client, "one")["version"] == version
        shutil.copytree(made / "v0", served / "one")
        look(service)
        assert folders(state_of(service)) == [f"one@{version}"]
        shutil.rmtree(served / "one")
        look(service)
        assert ask(client, "one")["version"] == version
    with start() as (_, client):
        assert ask(client, "one")["version"] == version


def test_a_folder_that_goes_while_the_disk_is_full_is_let_go_later_and_keeps_no_other_back(
    start: Start, made: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFailed("the disk is full")

    shutil.copytree(made / "v0", served / "one")
    with start() as (service, client):
        put(client, "one", tags=["x"])
        shutil.rmtree(served / "one")
        shutil.copytree(made / "v1", served / "two")
        with monkeypatch.context() as patch:
            patch.setattr(service.lifecycle._ledger, "write", full)
            look(service)
            ask(client, "two")
            assert client.get("/v1/adapters/one").json()["refusal"]["code"] == "storage_failed"
        for _ in range(8):
            service.follower.look()
        ask(client, "one", status=404)


def test_a_root_that_is_away_at_the_start_flips_nothing(
    start: Start, made: Path, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: FolderRoot) -> Listing:
        raise SourceUnreachable("the folder cannot be read")

    shutil.copytree(made / "v0", served / "one")
    shutil.copytree(made / "v2", served / "two")
    with start() as (_, client):
        in_folder = ask(client, "one")["version"]
        put(client, "one", made / "v1", activate=False)
        put(client, "two", tags=["x"])
    with monkeypatch.context() as patch:
        patch.setattr(FolderRoot, "listing", away)
        with start() as (_, client):
            assert [status_of(client, name) for name in ("one", "two")] == ["failed", "failed"]
            assert "cannot be read" in ask(client, "one", status=409)["detail"]
            put(client, "others", made / "v2")  # the ledger is written
    with start() as (_, client):
        assert ask(client, "one")["version"] == in_folder
        assert client.get("/v1/adapters/two").json()["tags"] == ["x"]


def test_what_fails_again_and_again_is_tried_less_and_less_often_and_told_of_once(
    start: Start, made: Path, served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(adapter_bytes=64) as (service, _):
        shutil.copytree(made / "v0", served / "one")
        tried: list[str] = []
        follow = service.lifecycle.follow

        def counted(root: Path, name: str) -> bool:
            tried.append(name)
            return follow(root, name)

        service.lifecycle.follow = counted  # type: ignore[method-assign]
        capsys.readouterr()
        for _ in range(100):
            service.follower.look()
        assert 4 <= len(tried) <= 8
        assert capsys.readouterr().err.count("adapter_refused") == 1


def test_two_servers_do_not_share_a_state_folder(start: Start, made: Path) -> None:
    with start() as (_, client):
        first = put(client, "topics", made / "v0")["version"]
        with pytest.raises(StorageFailed, match="another server"), start():
            pass
        assert ask(client, "topics")["version"] == first
    with start() as (_, client):
        assert ask(client, "topics")["version"] == first


def test_slow_sources_keep_no_text_waiting(start: Start, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes wait than there are threads for texts, and texts are classified."""
    may_go = threading.Event()
    with start() as (service, client), ThreadPoolExecutor(60) as pool:
        put(client, "topics", made / "v0")

        def slow(*_: object) -> Record:
            may_go.wait(60)
            raise Conflict("it took too long")

        monkeypatch.setattr(service.lifecycle, "put", slow)
        waiting = [pool.submit(put, client, f"t{number}", made / "v0", 409) for number in range(60)]
        try:
            assert pool_answer(client)
        finally:
            may_go.set()
        for one in waiting:
            one.result(60)


def pool_answer(client: TestClient) -> str:
    with ThreadPoolExecutor(1) as pool:
        return str(pool.submit(ask, client, "topics").result(20)["version"])


def test_a_file_that_lists_adapters_is_followed(start: Start, made: Path, served: Path, tmp_path: Path) -> None:
    def write(**sources: str) -> None:
        (served / "new").write_text(json.dumps({"schema": 1, "adapters": sources}))
        (served / "new").rename(served / "adapters.json")

    write(one=f"file:{made / 'v0'}")
    listed: dict[str, Any] = {"adapters": str(served / "adapters.json"), "state": str(tmp_path / "state")}
    with start(**listed) as (service, client):
        first = ask(client, "one")["version"]  # before anybody is answered
        write(one=f"file:{made / 'v1'}", two=f"file:{made / 'v2'}", three=f"file:{made / 'none'}")
        look(service)
        assert ask(client, "one")["version"] != first
        assert ask(client, "two")["method"] == "head"
        assert client.get("/v1/adapters/three").json()["refusal"]["code"] == "source_not_found"
        (served / "adapters.json").write_text('{"schema": 1, "adapters": {"no/name": "s3://b/x"}}')
        look(service)
        assert "adapters.no/name" in client.get("/v1/adapters").json()["trouble"]["reason"]
        ask(client, "two")  # what is wrong with the list takes nothing away
        write(two=f"file:{made / 'v2'}")
        look(service)
        ask(client, "one", status=404)
    with start(**listed) as (_, client):
        ask(client, "two")


def test_a_list_may_name_a_revision_of_a_model_on_a_hub(
    start: Start, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--acme--topics"
    shutil.copytree(made / "v0", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    adapters = {"tagged": "hf:acme/topics@v1", "exact": f"hf:acme/topics@{commit}"}
    (tmp_path / "adapters.json").write_text(json.dumps({"schema": 1, "adapters": adapters}))
    with start(adapters=str(tmp_path / "adapters.json"), state=str(tmp_path / "state")) as (_, client):
        for name in adapters:
            ask(client, name)
            [version] = client.get(f"/v1/adapters/{name}").json()["versions"]
            assert version["source"] == f"hf:acme/topics@{commit}"
