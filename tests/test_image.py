"""The image holds what serving needs and no more; `make image-test` builds and starts it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from server import __version__
from server.settings import read_settings
from tests.chart import CHART, ROOT, one, render, yaml

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
SERVER_STAGE = DOCKERFILE[DOCKERFILE.index("FROM user AS server") :]


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (the extra `deploy`)")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_stage_is_the_server_and_builds_nothing() -> None:
    assert not re.search(r"^FROM", SERVER_STAGE.partition("\n")[2], re.MULTILINE)
    assert "RUN" not in SERVER_STAGE


def test_compilers_stay_in_the_build_stage() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert [stage.partition("\n")[0] for stage in stages if "apt-get" in stage] == ["${BASE} AS build"]
    assert [stage.split()[0] for stage in stages[1:]] == ["${BASE}", "build", "build", "${BASE}", "user", "user"]
    assert set(re.findall(r"COPY --from=\S+ (\S+)", DOCKERFILE)) == {"/opt/adaptermux"}


def test_triton_is_told_of_a_cache_that_there_is() -> None:
    [(module, name)] = re.findall(r"TRITON_CACHE_MANAGER=([\w.]+):(\w+)", SERVER_STAGE)
    assert f"python -IBm {module};" in DOCKERFILE
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_the_image_and_the_chart_run_as_the_same_user() -> None:
    [user] = set(re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE))
    assert one(render({}), "StatefulSet")["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)


def test_the_environment_of_the_image_is_settings_of_the_server() -> None:
    variables = dict(re.findall(r"\b(ADAPTERMUX_\w+)=(\S+)", SERVER_STAGE))
    settings = read_settings({}, variables)
    assert (settings.adapters, settings.state, settings.host) == ("/adapters", "/state", "0.0.0.0")
    assert re.findall(r"^EXPOSE (\d+)", SERVER_STAGE, re.MULTILINE) == [str(settings.port)]


def test_the_health_check_asks_a_route_that_needs_no_key() -> None:
    [check] = re.findall(r'CMD \["python3", "-c", "(.*)"\]$', SERVER_STAGE, re.MULTILINE)
    compile(check, "HEALTHCHECK", "exec")
    assert "/health/live" in check


def test_what_is_copied_into_the_build_is_let_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_versions_of_torch_and_base_model_are_those_we_test_with() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==([\d.]+)$", constraints, re.MULTILINE)
    assert torch is not None
    assert f"ARG TORCH={torch[1]}\n" in DOCKERFILE
    assert re.search(r"^BASE_PACKAGE := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1] in DOCKERFILE  # type: ignore[index]


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_load_generators_own_packages_are_those_of_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["loadtest"]
    names = {re.split(r"[><=]", each)[0] for each in extras} - {"adaptermux[train]"}
    [line] = re.findall(r"pip install -c pins.txt (locust .*?) \\", DOCKERFILE)
    assert set(line.split()) == names | {"matplotlib"}  # of training it needs the figures of reports only


def test_compose_shares_rules_and_dashboard_with_the_chart() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounted = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert {"./helm/monitoring/rules.yaml", "./helm/monitoring/dashboard.json"} <= mounted
    assert all((ROOT / path).exists() for path in mounted if path.startswith("./helm/"))
    server = services["server"]
    assert server["read_only"] is True
    read_settings({}, {name: str(value) for name, value in server["environment"].items()})
    for service in services.values():
        assert re.fullmatch(r".+:[^:]+", service["image"])
        assert "latest" not in service["image"]
