"""Locust's own web page, with the users and the service of a scenario, for people who want to click."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.harness import Harness, Options
from loadtest.job import Job
from loadtest.measure import LOCUSTFILE
from loadtest.remote import Remote
from loadtest.scenario import Scenario


def serve(scenario: Scenario, remote: Remote | None, web_port: int) -> int:
    """Start the first case's service, if none runs, and Locust's page; until Ctrl-C. Raises LoadTestError and Misuse.

    Numbers there are users: of an open loop, each sends the case's rate.
    """
    name, case = next(iter(scenario.cases.items()))
    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder), "by hand", remote)
        with Harness(scenario, options) as harness:
            target = harness.target(case)
            job = Job(
                workload=case.workload,
                adapters=[adapter_id for adapter_id, _ in target.hot],
                headers=dict(target.service.remote.headers),
            )
            path = Path(folder) / "job.json"
            job.write(path)
            num_users = str(case.workload.num_users or 1)
            command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--job", str(path)]
            command += ["--host", target.service.remote.url, "--users", num_users, "--spawn-rate", num_users]
            command += ["--web-host", "127.0.0.1", "--web-port", str(web_port)]
            print(f"{scenario.name}, {name}: http://127.0.0.1:{web_port} asks {target.service.remote.url}", flush=True)
            return subprocess.run(command, check=False).returncode
