"""The chart as Helm renders it, for the tests."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

helm = pytest.importorskip("helm_python", reason="needs the extra `deploy`")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
CHART = ROOT / "helm"
RULES = CHART / "monitoring" / "rules.yaml"
DASHBOARD = CHART / "monitoring" / "dashboard.json"
Manifest = dict[str, Any]

CLUSTERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one replica": {"replicas": 1},
    "a router for one replica": {"replicas": 1, "router": {"enabled": "always"}},
    "no router": {"router": {"enabled": "never"}},
    "a list": {"adapters": {"list": {"reviews": "s3://models/reviews/7", "topics": "hf:acme/topics@3f2c1ab"}}},
    "a bucket": {
        "adapters": {"bucket": "s3://models/adapters"},
        "sources": {"secret": "bucket", "env": {"AWS_REGION": "eu-central-1"}},
    },
    "a volume": {"adapters": {"claim": "adapters", "subPath": "production"}},
    "a base of a bucket": {"base": {"name": "tiny", "source": "s3://models/tiny", "sha256": "0" * 64}},
    "a base on a volume": {"base": {"name": "tiny", "claim": "models"}},
    "GPUs": {
        "gpu": {"count": 1},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
    },
    "keys": {
        "auth": {"secret": "keys"},
        "serviceMonitor": {"enabled": True, "key": {"secret": "metrics-key"}},
        "loadTest": {"enabled": True, "key": {"secret": "classify-key"}},
    },
    "settings": {"settings": {"max-batch-tokens": 16384, "dtype": "float32", "access-log": True, "batch-ms": 12.5}},
    "a local cache": {"state": {"persistence": True, "storageClass": "fast", "size": "50Gi"}},
    "an HPA": {"autoscaling": {"enabled": True}},
    "KEDA": {"autoscaling": {"enabled": True, "kind": "keda", "maxReplicas": 4}},
    "an HPA by tokens": {"autoscaling": {"enabled": True, "tokensPerS": 4000, "queueMs": 0, "cpuPercent": 0}},
    "KEDA by tokens": {"autoscaling": {"enabled": True, "kind": "keda", "tokensPerS": 4000, "queueMs": 0}},
    "an ingress": {"ingress": {"enabled": True, "className": "nginx", "tls": [{"secretName": "tls"}]}},
    "a gateway": {
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["adaptermux.example.org"]}
    },
    "policies": {"networkPolicy": {"enabled": True}},
    "policies without a router": {"networkPolicy": {"enabled": True}, "replicas": 1},
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "disabled": ["AdaptermuxLatency"]},
        "dashboard": {"enabled": True},
    },
    "a load test": {"loadTest": {"enabled": True, "set": ["workload.num_users=64"]}},
    "an account of the cloud": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}}},
    "own names": {"fullnameOverride": "x" * 80, "commonLabels": {"team": "nlp"}, "imagePullSecrets": ["pull"]},
}


@cache
def documented() -> dict[str, dict[str, Any]]:
    """Values that docs/deploy.md shows, by the line they begin on."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = {}
    for match in re.finditer(r"```yaml\n(# values.*?)```", text, re.DOTALL):
        found[f"deploy.md:{text[: match.start()].count(chr(10)) + 2}"] = yaml.safe_load(match[1])
    return found


def render(values: dict[str, Any], name: str = "demo") -> list[Manifest]:
    """Every object of a release."""
    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name=name, namespace="prod")
    return [
        one
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for one in yaml.safe_load_all(text)
        if one is not None
    ]


def notes(values: dict[str, Any]) -> str:
    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render(values, name="demo", namespace="prod")
    return str(next(text for path, text in rendered.items() if path.endswith("NOTES.txt")))


def one(manifests: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """The one object of a kind whose name ends so."""
    [found] = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(suffix)]
    return found


def router_config(values: dict[str, Any]) -> str:
    return str(one(render(values), "ConfigMap", "-router")["data"]["haproxy.cfg"])
