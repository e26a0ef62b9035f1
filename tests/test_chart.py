"""The chart is right: Helm renders it, Kubernetes would take it, and it fits the server."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from fastapi.routing import APIRoute

from loadtest.command import make_parser as make_loadtest_parser
from server.command import parse
from server.routes import operate
from server.settings import Settings, read_settings
from tests.chart import CHART, CLUSTERS, Manifest, documented, helm, notes, one, render, yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `deploy`")

ALL = CLUSTERS | documented()
VERSIONS = ("1.29", "1.33", "1.37")
FIELDS_OF_CUSTOM_KINDS = {
    "ServiceMonitor": {"jobLabel", "selector", "endpoints"},
    "PrometheusRule": {"groups"},
    "ScaledObject": {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "cooldownPeriod", "advanced", "triggers",
    },
    "HTTPRoute": {"parentRefs", "hostnames", "rules"},
}  # fmt: skip
"""Their schemas come with the cluster's own operators, so this is what we use of them."""


@pytest.fixture(scope="module", params=ALL)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ALL[request.param]


@pytest.fixture(scope="module")
def manifests(values: dict[str, Any]) -> list[Manifest]:
    return render(values)


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Every pod template, with its labels."""
    return [each["spec"]["template"] for each in manifests if "template" in each.get("spec", {})]


def containers(pod: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    return found


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    found: dict[str, str] = one(manifests, "ConfigMap", "-settings")["data"]
    return found


def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), values, strict=True, kube_version="1.31.0")
    assert not report["errors"], report
    assert {each["error"] for each in report["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_match_the_schemas_of_kubernetes(version: str) -> None:
    different = {json.dumps(each, sort_keys=True) for values in ALL.values() for each in render(values)}
    for each in map(json.loads, sorted(different)):
        if each["kind"] in FIELDS_OF_CUSTOM_KINDS:
            assert each["spec"].keys() <= FIELDS_OF_CUSTOM_KINDS[each["kind"]]
        else:
            kubernetes_validate.validate(each, version, strict=True)


def test_names_are_unique_and_no_longer_than_a_label(manifests: list[Manifest]) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 for _, name in names)


def test_every_object_has_the_standard_labels(manifests: list[Manifest]) -> None:
    for each in manifests:
        labels = each["metadata"]["labels"]
        assert {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "version", "managed-by")} <= (
            labels.keys()
        ), each["metadata"]["name"]


def test_every_selector_finds_the_pods_of_one_kind(manifests: list[Manifest]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(manifests)]
    for each in manifests:
        spec = each.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if each["kind"] == "ServiceMonitor" or selector is None:
            continue
        selector = selector.get("matchLabels", selector)
        assert sum(selector.items() <= one.items() for one in labels) == 1, each["metadata"]["name"]


def test_prometheus_scrapes_every_replica_once(manifests: list[Manifest]) -> None:
    for monitor in (each for each in manifests if each["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        found = [
            each for each in manifests if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()
        ]
        assert [each["metadata"]["name"] for each in found] == [
            f"{one(manifests, 'StatefulSet')['spec']['serviceName']}"
        ]
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
        assert found[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "adaptermux"  # as the rules have it


def test_ports_that_are_named_exist(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        names = {port["name"] for each in containers(pod) for port in each.get("ports", [])}
        for each in containers(pod):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in each:
                    assert each[probe]["httpGet"]["port"] in names
        for service in (each for each in manifests if each["kind"] == "Service"):
            if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items():
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_volumes_that_are_mounted_exist_and_all_are_used(manifests: list[Manifest]) -> None:
    for each in manifests:
        if "template" not in each.get("spec", {}):
            continue
        pod = each["spec"]["template"]
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])}
        mounts = [mount for container in containers(pod) for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes


def test_configmaps_that_are_used_exist(manifests: list[Manifest]) -> None:
    used = set(re.findall(r"'config[Mm]ap(?:Ref)?': {'name': '([^']+)'", str(manifests)))
    assert used <= {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
    assert len(used) >= 1


def test_pods_run_without_rights(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers(pod):
            security = each["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert each["resources"]["limits"]["memory"]
            assert each["resources"]["requests"]["cpu"]


def test_the_settings_are_those_of_the_server(manifests: list[Manifest], values: dict[str, Any]) -> None:
    settings = read_settings({}, settings_of(manifests))
    for flag, given in values.get("settings", {}).items():
        assert str(getattr(settings, flag.replace("-", "_"))) == str(given)


def test_the_chart_knows_every_setting_that_it_does_not_set_itself() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    everything = render(CLUSTERS["keys"] | CLUSTERS["a base on a volume"])
    own = {name.removeprefix("ADAPTERMUX_").lower() for name in settings_of(everything)}
    known = {name.replace("-", "_") for name in schema["properties"]["settings"]["properties"]}
    assert own | known == set(Settings.model_fields)
    assert not own & known


def test_folders_of_the_settings_are_mounted(manifests: list[Manifest]) -> None:
    [server] = one(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    mounted = {mount["mountPath"]: mount.get("readOnly", False) for mount in server["volumeMounts"]}
    settings = settings_of(manifests)
    assert mounted[settings["ADAPTERMUX_STATE"]] is False
    for name in ("ADAPTERMUX_ADAPTERS", "ADAPTERMUX_BASE", "ADAPTERMUX_KEYS"):
        place = settings.get(name, "s3://")
        assert "://" in place or any(f"{place}/".startswith(f"{path}/") for path in mounted), name
    for volume in one(manifests, "StatefulSet")["spec"]["template"]["spec"]["volumes"]:
        if "secret" in volume or "configMap" in volume:  # what is mounted with subPath is never replaced
            [mount] = [one for one in server["volumeMounts"] if one["name"] == volume["name"]]
            assert "subPath" not in mount


def test_a_replica_has_the_time_to_drain(manifests: list[Manifest]) -> None:
    pod = one(manifests, "StatefulSet")["spec"]["template"]["spec"]
    [wait] = [int(each["lifecycle"]["preStop"]["exec"]["command"][1]) for each in pod["containers"]]
    drain_s = int(settings_of(manifests)["ADAPTERMUX_DRAIN_S"])
    assert pod["terminationGracePeriodSeconds"] >= wait + drain_s + 10


def test_probe_paths_are_routes_of_the_server_that_need_no_key(manifests: list[Manifest]) -> None:
    [server] = one(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    paths = {server[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"/health/startup", "/health/ready", "/health/live"}
    routes = {route.path: route for route in operate.router.routes if isinstance(route, APIRoute)}
    assert not any(routes[path].dependencies for path in paths)


def test_commands_of_containers_are_commands_of_ours(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        for each in containers(pod):
            if each["name"] == "fetch-base":
                parse(each["args"])
            elif each["name"] == "load-test":
                make_loadtest_parser().parse_args(each["args"])


def test_a_changed_list_restarts_nothing_and_a_changed_setting_does() -> None:
    def pod(values: dict[str, Any]) -> Manifest:
        found: Manifest = one(render(values), "StatefulSet")["spec"]["template"]
        return found

    assert pod(CLUSTERS["a list"]) == pod({})
    assert pod(CLUSTERS["settings"]) != pod({})
    listed = one(render(CLUSTERS["a list"]), "ConfigMap", "-adapters")["data"]["adapters.json"]
    assert yaml.safe_load(listed) == {"schema": 1, "adapters": CLUSTERS["a list"]["adapters"]["list"]}


def test_replicas_are_left_to_the_autoscaler() -> None:
    for name in ("an HPA", "KEDA"):
        manifests = render(CLUSTERS[name])
        assert "replicas" not in one(manifests, "StatefulSet")["spec"]
        kind = "HorizontalPodAutoscaler" if name == "an HPA" else "ScaledObject"
        target = one(manifests, kind)["spec"]["scaleTargetRef"]
        assert target == {
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": one(manifests, "StatefulSet")["metadata"]["name"],
        }  # fmt: skip


def test_custom_kinds_are_off_unless_asked_for() -> None:
    assert not {each["kind"] for each in render({})} & FIELDS_OF_CUSTOM_KINDS.keys()


def test_a_gpu_is_asked_for_as_a_limit_and_the_engine_must_use_it() -> None:
    manifests = render(CLUSTERS["GPUs"])
    [server] = one(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert settings_of(manifests)["ADAPTERMUX_DEVICE"] == "cuda"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": "3"}, "'/replicas': got string, want integer"),
        ({"replica": 3}, "'replica' not allowed"),
        ({"settings": {"max-batch-tokns": 1}}, "'/settings': additional properties 'max-batch-tokns'"),
        ({"adapters": {"list": {"a/b": "s3://x/y"}}}, "'a/b'"),
        ({"adapters": {"list": {"ab": "http://x/y"}}}, "'/adapters/list/ab'"),
        ({"adapters": {"bucket": "models"}}, "'/adapters/bucket'"),
        ({"gpu": {"count": 2}}, "'/gpu/count': maximum: got 2, want 1"),
        ({"resources": {"requests": {"cpu": "500m"}}}, "'/resources/requests/cpu'"),
        ({"base": {"name": "x", "source": "s3://x/y", "sha256": "abc"}}, "'/base/sha256'"),
        ({"router": {"enabled": True}}, "'/router/enabled': value must be one of"),
        ({"router": {"balancePercent": 100}}, "'/router/balancePercent'"),
        ({"sources": {"env": {"ADAPTERMUX_PORT": "1"}}}, "ADAPTERMUX_PORT"),
        ({"autoscaling": {"kind": "vpa"}}, "'/autoscaling/kind': value must be one of 'hpa', 'keda'"),
        ({"prometheusRule": {"disabled": ["Adaptermux"]}}, "'/prometheusRule/disabled/0': value must be one of"),
        ({"loadTest": {"set": ["users"]}}, "'/loadTest/set/0'"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm.HelmValuesError) as caught:
        render(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adapters": {"bucket": "s3://a/b", "claim": "c"}}, "adapters: set one of list, bucket and claim"),
        ({"base": {"source": "s3://a/b"}}, "base.name is empty"),
        ({"base": {"source": "s3://a/b", "name": "x"}}, "base.sha256 is empty"),
        ({"base": {"name": "x"}}, "neither base.source nor base.claim"),
        ({"base": {"claim": "x"}}, "base.name is empty"),
        ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "autoscaling.minReplicas is 9"),
        (
            {"autoscaling": {"enabled": True, "queueMs": 0, "cpuPercent": 0}},
            "queueMs, tokensPerS and cpuPercent are all 0",
        ),
        ({"auth": {"secret": "x"}, "serviceMonitor": {"enabled": True}}, "serviceMonitor.key.secret is empty"),
        ({"auth": {"secret": "x"}, "loadTest": {"enabled": True}}, "loadTest.key.secret is empty"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm.HelmRenderError) as caught:
        render(values)
    assert message in str(caught.value)


def test_every_value_has_a_comment_or_a_name_that_says_it_all() -> None:
    """Top-level values: a comment right above, or only names of Kubernetes' own below an explained block."""
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    plain = {
        "fullnameOverride", "resources", "runtimeClassName", "priorityClassName", "nodeSelector", "tolerations",
        "affinity", "podLabels", "podAnnotations", "extraVolumes", "extraVolumeMounts", "probes", "drain",
        "serviceAccount", "ingress", "autoscaling", "podDisruptionBudget", "networkPolicy", "prometheusRule",
    }  # fmt: skip
    for before, line in pairwise(lines):
        match = re.match(r"(\w+):", line)
        if match and match[1] not in plain:
            assert before.startswith("#"), f"`{match[1]}` has no comment"


def test_the_schema_and_the_values_have_the_same_names() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, value in values.items():
        properties = schema["properties"][name].get("properties")
        if isinstance(value, dict) and properties is not None and name != "settings":
            assert set(properties) == set(value), name


def test_the_notes_say_what_to_do_next() -> None:
    plain = notes({})
    assert "There are none yet" in plain
    assert "Set auth.secret" in plain
    assert "With one replica" in notes({"replicas": 1})
    assert "There are none yet" not in notes(CLUSTERS["a bucket"])
    assert "Authorization: Bearer" in notes(CLUSTERS["keys"])
    assert "service/demo-adaptermux " in plain
