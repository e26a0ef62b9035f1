"""HAProxy with the configuration that the chart renders, on this machine's own addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.replicas.fleet import LIMIT_S, answers_200, free_port, until

CHART = Path(__file__).parent.parent.parent / "helm"
HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
BALANCE = re.compile(r"^  balance .*\n  hash-type .*\n  hash-balance-factor \d+\n", re.MULTILINE)


@dataclass(frozen=True)
class Router:
    """One that runs."""

    url: str
    metrics_url: str

    def count(self, name: str) -> float:
        """A metric of HAProxy's about the replicas: `active_servers`, `redispatch_warnings_total`."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=LIMIT_S) as response:
            text = response.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"haproxy_backend_{name}" and sample.labels["proxy"] == "replicas"
        )

    def wait_for(self, num_replicas: int) -> None:
        """Until it takes so many for healthy."""
        until(lambda: self.count("active_servers") == num_replicas, f"the router sees {num_replicas} replicas")

    def is_ready(self) -> bool:
        return answers_200(f"{self.metrics_url}/ready")


def chart_config(num_replicas: int) -> str:
    """As the chart renders it with its own values."""
    import helm_python as helm  # a shared library of 75 MB
    import yaml

    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render({"replicas": num_replicas}, name="benchmark", namespace="default")
    [text] = [text for path, text in rendered.items() if path.endswith("templates/router.yaml")]
    return str(next(yaml.safe_load_all(text))["data"]["haproxy.cfg"])


def on_loopback(text: str, port: int, metrics_port: int, replica_ports: Sequence[int]) -> str:
    """The same configuration with the addresses of this machine, which no resolver has to find."""
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{metrics_port}")
    text = text.replace(" resolvers cluster init-addr none", "")
    for number, replica_port in enumerate(replica_ports):
        text, count = re.subn(rf"(server replica-{number}) \S+", rf"\1 127.0.0.1:{replica_port}", text)
        assert count == 1, f"the chart's router has a server line for replica {number}"
    return text


def with_balance(text: str, percent: int) -> str:
    """With another bound on the load; 0 has none."""
    text, count = re.subn(r"hash-balance-factor \d+", f"hash-balance-factor {percent}", text)
    assert count == 1, "the chart's router has one bound"
    return text


def at_random(text: str) -> str:
    """With no regard to the adapter: of two replicas by chance, the one with less to do."""
    text, count = BALANCE.subn("  balance random\n", text)
    assert count == 1, "the chart's router has one way to balance"
    return text


def balance_of(text: str) -> int:
    """The bound on the load, in percent of the mean."""
    found = re.search(r"hash-balance-factor (\d+)", text)
    assert found is not None, "the chart's router has a bound"
    return int(found[1])


@contextmanager
def routing(text: str, replica_ports: Sequence[int], folder: Path) -> Iterator[Router]:
    """A router in front of replicas, once it is ready. text: as the chart renders it."""
    if HAPROXY is None:
        raise SystemExit("haproxy is missing: apt-get install haproxy")
    port, metrics_port = free_port(), free_port()
    path = folder / f"haproxy-{port}.cfg"
    path.write_text(on_loopback(text, port, metrics_port, replica_ports), encoding="utf-8")
    with subprocess.Popen(
        [HAPROXY, "-db", "-f", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            router = Router(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}")
            until(router.is_ready, "the router is ready")
            yield router
        finally:
            process.kill()
