"""Prometheus with the configuration of compose.yaml and the chart's rules, on this machine's own addresses."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.replicas.fleet import LIMIT_S, free_port, until

MONITORING = Path(__file__).parent.parent.parent / "helm" / "monitoring"
PROMETHEUS = shutil.which("prometheus")
EVERY = "1s"
UP = 'up{job="adaptermux"}'


@dataclass(frozen=True)
class Scraper:
    """One that runs."""

    url: str

    def value(self, expression: str, at_s: float | None = None) -> float:
        """The one value of an expression, now or at a Unix time."""
        found = self._ask(expression, at_s)
        if len(found) != 1:
            raise SystemExit(f"`{expression}` has {len(found)} values in Prometheus, not one")
        return float(found[0]["value"][1])

    def firing(self) -> list[str]:
        """Names of the alerts that fire."""
        return sorted({one["metric"]["alertname"] for one in self._ask('ALERTS{alertstate="firing"}', None)})

    def wait_for_scrapes(self, num_targets: int) -> float:
        """Until every target was scraped after this call; the Unix time then."""
        now = time.time()
        until(lambda: self._num_scraped_since(now) == num_targets, f"Prometheus has scraped {num_targets} targets")
        return time.time()

    def _num_scraped_since(self, since_s: float) -> int:
        with suppress(OSError, urllib.error.URLError):
            # when the last scrape began; `timestamp` of more than a name would be when we ask
            return len(self._ask(f"timestamp({UP}) > {since_s} and {UP} == 1", None))
        return 0

    def _ask(self, expression: str, at_s: float | None) -> list[dict[str, Any]]:
        asked = {"query": expression} | ({} if at_s is None else {"time": str(at_s)})
        query = urllib.parse.urlencode(asked)
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=LIMIT_S) as response:
            found: list[dict[str, Any]] = json.loads(response.read())["data"]["result"]
        return found


@contextmanager
def scraping(ports: Sequence[int], folder: Path) -> Iterator[Scraper]:
    """A Prometheus that looks at replicas once a second, once it has seen them."""
    import yaml

    if PROMETHEUS is None:
        raise SystemExit("prometheus is missing: apt-get install prometheus")
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    config["rule_files"] = [str(MONITORING / "rules.yaml")]
    [job] = config["scrape_configs"]
    [known] = job["static_configs"]
    known["targets"] = [f"127.0.0.1:{port}" for port in ports]
    path, port = folder / "prometheus.yaml", free_port()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [PROMETHEUS, f"--config.file={path}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            scraper = Scraper(f"http://127.0.0.1:{port}")
            scraper.wait_for_scrapes(len(ports))
            yield scraper
        finally:
            process.terminate()
