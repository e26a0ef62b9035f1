"""Three server processes behind HAProxy with the chart's configuration: where adapters go, and what a death costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.replicas import death
from benchmarks.replicas.fleet import Fleet, ask_each
from benchmarks.replicas.load import Scale, crowded, workload
from benchmarks.replicas.router import HAPROXY, at_random, chart_config, routing, with_balance
from docs.replicas import promises
from server.methods import method_named
from training import dummy

pytest.importorskip("helm_python", reason="needs the extra `deploy`")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="needs haproxy (apt-get install haproxy)")

NUM_ADAPTERS, NUM_REPLICAS, ROOM = 60, 3, 0.4


@pytest.fixture(scope="module")
def config() -> str:
    return chart_config(NUM_REPLICAS)


@pytest.fixture(scope="module")
def fleet(base_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Each of them has room for 40 % of the adapters, and none in memory."""
    root, base = tmp_path_factory.mktemp("replicas"), str(base_folders["bert"])
    list(dummy.make(root / "adapters", method_named("lora"), NUM_ADAPTERS, base))
    num_bytes = sum(path.stat().st_size for path in root.glob("adapters/*/adapter_model.safetensors"))
    settings: dict[str, str | int] = {
        "base": base, "device": "cpu", "dtype": "float32", "threads": 1, "kernels": "off", "preload": 0,
        "adapter-bytes": round(num_bytes * ROOM),
    }  # fmt: skip
    with Fleet(root / "adapters", root, settings, NUM_REPLICAS) as found:
        yield found


def hits_of_the_second_time(fleet: Fleet, config: str, folder: Path) -> float:
    """Part of the adapters that are in memory when all are asked again."""
    with routing(config, fleet.ports, folder) as router:
        ask_each(router.url, fleet.adapter_ids)
        before = fleet.read()
        ask_each(router.url, fleet.adapter_ids)
        return sum(new.num_hits - old.num_hits for old, new in zip(before, fleet.read(), strict=True)) / NUM_ADAPTERS


def test_each_replica_holds_its_share_and_by_chance_none_holds_what_is_asked(
    fleet: Fleet, config: str, tmp_path: Path
) -> None:
    assert hits_of_the_second_time(fleet, config, tmp_path) == 1
    with routing(config, fleet.ports, tmp_path) as router:
        homes = fleet.homes(router.url)
    for number, reading in enumerate(fleet.read()):
        own = {adapter_id for adapter_id, home in homes.items() if home == number}
        assert own == reading.resident
        assert 0.2 < len(own) / NUM_ADAPTERS < ROOM
    assert hits_of_the_second_time(fleet, at_random(config), tmp_path) < 0.7


def test_a_bound_that_nothing_exceeds_sends_adapters_to_the_same_homes(
    fleet: Fleet, config: str, tmp_path: Path
) -> None:
    found = []
    for percent in (0, 125, 1000):
        with routing(with_balance(config, percent), fleet.ports, tmp_path) as router:
            found.append(fleet.homes(router.url))
    assert found[0] == found[1] == found[2]


def test_a_replica_that_is_killed_under_load_loses_no_request_and_moves_only_its_own_adapters(
    fleet: Fleet, config: str, tmp_path: Path
) -> None:
    found = death.kill_one(fleet, config, Scale(rate_per_s=30, spell_s=6), tmp_path)
    assert found["error_kinds"] == {}
    assert found["requests"] > 150
    assert found["asked_of_its_adapters_after"] > 10
    assert found["asked_again"] > 0
    assert 0 < found["adapters_moved"] < NUM_ADAPTERS
    assert min(found["moved_to"].values()) > 0
    assert all(promises({"death": found}).values())


def test_a_crowd_asks_for_one_adapter_as_often_as_for_all_others() -> None:
    crowd, usual = crowded(100, 300, seed=0), workload(100, 300, seed=0)
    assert crowd.shares()[0] == pytest.approx(0.5)
    assert crowd.total_rate_per_s == pytest.approx(usual.total_rate_per_s) == pytest.approx(100)
    assert Counter(crowd.shares()).most_common(1)[0][1] == 1
