"""Alerts fire when they should and only then, and rules and dashboard name what the server exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server import errors
from server.metrics import Metrics
from tests.chart import CLUSTERS, DASHBOARD, ROOT, RULES, one, render, yaml

CASES = ROOT / "tests" / "alerts.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (apt-get install prometheus)")
CALLERS_OWN = {"deadline_exceeded", "overloaded"}
"""Codes of 500 and more that AdaptermuxOverloaded watches, not AdaptermuxErrorRate."""
OF_CHANGES_ONLY = {"source_unreachable"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Every query of the dashboard, its variables filled in as Grafana would."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [
        text.replace("$__rate_interval", "1m").replace("$job", "adaptermux").replace("$instance", ".*")
        for text in found
    ]


def exported() -> dict[str, set[str]]:
    """Labels of every series that the server exports, by name."""
    found: dict[str, set[str]] = {}
    metrics = Metrics(top_adapters=0)
    for value in vars(metrics).values():
        if hasattr(value, "describe") and hasattr(value, "_labelnames"):
            [family] = value.describe()
            labels = set(value._labelnames)
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            for suffix in suffixes:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for family in metrics.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        found.setdefault(family.name + suffix, set(getattr(family, "_labelnames", ())))
    return found


def series_of(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:adaptermux_\w+|vllm:\w+|up)\b(?=[{\[ )]|$)", expression.replace('"adaptermux"', "")))


def promtool(*arguments: object) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_are_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", RULES)


@needs_promtool
def test_every_alert_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", CASES)


@needs_promtool
def test_an_alert_that_would_not_fire_is_seen(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES.read_text().replace("adaptermux_engine_alive == 0", "vector(0) == 1"))
    (tmp_path / "alerts.yaml").write_text(CASES.read_text().replace("../helm/monitoring/", ""))
    with pytest.raises(AssertionError, match="AdaptermuxEngineDead"):
        promtool("test", "rules", tmp_path / "alerts.yaml")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@needs_promtool
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    found = [{"record": f"dashboard:{index}", "expr": text} for index, text in enumerate(expressions())]
    assert len(found) > 30
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": found}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


@pytest.mark.parametrize("expression", [*expressions(), *(rule["expr"] for rule in rules())])
def test_metrics_and_labels_that_are_named_are_exported(expression: str) -> None:
    known = exported()
    found = series_of(expression)
    assert found, expression
    for name in found - {"up"}:
        assert name in known, name
    added = {"job", "instance", "namespace", "pod", "status", "code"}
    labels = {
        label.strip() for text in re.findall(r"(?:by|without) \(([^)]*)\)", expression) for label in text.split(",")
    }
    assert labels - added <= set().union(*(known.get(name, set()) for name in found)), expression


def test_a_metric_that_is_not_exported_would_be_seen() -> None:
    assert series_of("rate(adaptermux_nothing_total[5m])") == {"adaptermux_nothing_total"}
    assert "adaptermux_nothing_total" not in exported()


def test_codes_in_the_rules_are_the_servers_own_failures() -> None:
    by_name = {rule["alert"]: set(re.findall(r'code=~"([^"]+)"', rule["expr"])) for rule in rules()}
    [watched] = by_name["AdaptermuxErrorRate"]
    [refused] = by_name["AdaptermuxOverloaded"]
    assert set(refused.split("|")) == CALLERS_OWN
    kinds: list[type[errors.AdaptermuxError]] = [
        *errors.RequestError.__subclasses__(), *errors.ServiceError.__subclasses__(),
    ]  # fmt: skip
    own = {"internal_error"}  # a bug
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "code" in vars(kind) and getattr(kind, "status", 0) >= 500:
            own.add(str(kind.code))
    assert set(watched.split("|")) == own - CALLERS_OWN - OF_CHANGES_ONLY


def test_every_alert_has_a_paragraph_in_the_guide() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for rule in rules():
        anchor = rule["annotations"]["runbook_url"].removeprefix("docs/deploy.md#")
        assert anchor == rule["alert"].lower()
        assert f"\n### {rule['alert']}\n" in text


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_chart_hands_rules_and_dashboard_on_as_they_are() -> None:
    manifests = render({"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}})
    assert [rule for group in one(manifests, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]] == rules()
    shown = one(manifests, "ConfigMap", "-dashboard")["data"]["adaptermux.json"]
    assert json.loads(shown) == json.loads(DASHBOARD.read_text(encoding="utf-8"))


def test_an_alert_that_is_switched_off_is_left_out_and_runbooks_get_their_prefix() -> None:
    values = {"prometheusRule": {"enabled": True, "disabled": ["AdaptermuxLatency"], "runbookPrefix": "https://wiki/"}}
    [group] = one(render(values), "PrometheusRule")["spec"]["groups"]
    assert {rule["alert"] for rule in rules()} - {rule["alert"] for rule in group["rules"]} == {"AdaptermuxLatency"}
    assert all(rule["annotations"]["runbook_url"].startswith("https://wiki/docs/") for rule in group["rules"])


@needs_promtool
def test_the_query_that_keda_is_given_parses(tmp_path: Path) -> None:
    triggers = one(render(CLUSTERS["KEDA"]), "ScaledObject")["spec"]["triggers"]
    query = triggers[0]["metadata"]["query"]
    assert series_of(query) <= exported().keys()
    rule = {"groups": [{"name": "keda", "rules": [{"record": "keda:queue", "expr": query}]}]}
    (tmp_path / "rules.yaml").write_text(json.dumps(rule))
    promtool("check", "rules", tmp_path / "rules.yaml")


@needs_promtool
def test_prometheus_takes_the_configuration_of_one_machine() -> None:
    assert "SUCCESS" in promtool("check", "config", RULES.with_name("prometheus.yaml"))
