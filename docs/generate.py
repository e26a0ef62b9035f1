"""Write the generated parts of the documents, their figures, and what is printed: `make docs`.

A test fails when any of it is stale.

A generated part lies between `<!-- generated: NAME -->` and `<!-- end generated -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client.metrics import MetricWrapperBase

from docs import (
    cases,
    experiment,
    figures,
    findings,
    footprints,
    papers,
    published,
    scaling,
    scaling_figures,
    service,
    sweep,
)
from docs.replicas import replicas_part
from docs.sizing import sizing_table
from loadtest import scenario
from server import errors
from server.description import describe
from server.keys import FileContent, KeyEntry, TenantEntry
from server.metrics import Metrics
from server.routes import ROUTERS
from server.settings import ENVIRONMENT_PREFIX, Settings, flag_of
from server.state_metrics import StateCollector

DOCS = Path(__file__).parent
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def main() -> int:
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        fresh = refreshed(text)
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
            print(f"wrote {path.name}")
    for name, draw in (figures.FIGURES | scaling_figures.FIGURES).items():
        (DOCS / "figures" / f"{name}.svg").write_bytes(draw())
    try:
        for paper in papers.papers():
            if not papers.is_fresh(paper):
                papers.build(paper, paper.with_suffix(".pdf"))
                print(f"wrote {paper.with_suffix('.pdf').name}")
    except papers.PaperError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def refreshed(text: str) -> str:
    """The document with its generated parts as they should be."""
    parts = {
        "settings": settings_table,
        "metrics": metrics_table,
        "errors": errors_table,
        "key_file": key_file_table,
        "routes": routes_part,
        "scenarios": scenarios_table,
        "footprints": footprints.footprints_table,
        "costs": footprints.costs_table,
        "results": published.results_table,
        "recomputed": published.recomputed_table,
        "settings_swing": published.settings_table,
        "sizing": sizing_table,
        "replicas": replicas_part,
        **scaling.PARTS,
        "candidates": experiment.candidates_table,
        "tasks": experiment.tasks_table,
        "coverage": experiment.coverage_part,
        "headline": experiment.headline_table,
        "accuracies": experiment.accuracies_table,
        "across": experiment.across_table,
        "details": experiment.details_table,
        "example": experiment.example_table,
        "sweep": sweep.basis_part,
        "sweep_settings": sweep.settings_table,
        "sweep_changes": sweep.changes_table,
        "findings": findings.findings_part,
        "doubts": findings.doubts_part,
        "serving": service.serving_table,
        "strains": service.serving_part,
        "cases": cases.cases_part,
        "cases_short": cases.cases_table,
        "room": cases.room_table,
        "tree_basis": experiment.basis_part,
    }
    return PART.sub(lambda match: f"{match[1]}\n{parts[match[2]]()}\n{match[3]}", text)


def settings_table() -> str:
    rows = ["| flag | environment variable | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        rows.append(f"| `{flag_of(name)}` | `{ENVIRONMENT_PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for name, kind, labels, text in sorted(metric_rows()):
        rows.append(f"| `{name}` | {kind} | {', '.join(labels) or '–'} | {text} |")
    return "\n".join(rows) + "\n"


def metric_rows() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and meaning of every metric of the server."""
    metrics = Metrics(top_adapters=0)
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            [described] = collector.describe()
            suffix = "_total" if described.type == "counter" else ""
            yield described.name + suffix, described.type, tuple(collector._labelnames), described.documentation
        elif isinstance(collector, StateCollector):
            for family in collector.collect():
                suffix = "_total" if family.type == "counter" else ""
                labels = tuple(getattr(family, "_labelnames", ()))
                yield family.name + suffix, family.type, labels, family.documentation


def scenarios_table() -> str:
    rows = ["| scenario | cases | minutes | what it measures |", "|---|---|---|---|"]
    for name in scenario.names():
        found = scenario.read(name)
        rows.append(f"| `{name}` | {len(found.cases)} | {found.seconds / 60:.1f} | {found.description} |")
    return "\n".join(rows) + "\n"


def routes_part() -> str:
    """Every native route: what it does, what it takes and gives, what else it may answer."""
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    described = describe(app)
    shown: dict[str, None] = {}
    lines: list[str] = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += [f"### `{method.upper()} {path}`", "", _plain(operation["description"]), ""]
            lines += _parameters(operation)
            body = _schema(operation.get("requestBody", {}))
            answer = _schema(next((one for code, one in operation["responses"].items() if code[0] == "2"), {}))
            shown |= dict.fromkeys(name for name in (body, answer) if name)
            lines += [f"Takes {_link(body)}. " * bool(body) + f"Gives {_link(answer)}." * bool(answer), ""]
            others = [f"{code} {one['description'][:1].lower()}{one['description'][1:]}"
                      for code, one in sorted(operation["responses"].items()) if code[0] != "2"]  # fmt: skip
            lines += ["Otherwise: " + "; ".join(others) + "." if others else "", ""]
    for name in _with_parts(list(shown), described["components"]["schemas"]):
        lines += _model(name, described["components"]["schemas"][name])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _parameters(operation: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{one['name']}` | {one['in']} | {_kind(one['schema'])} | {_plain(one.get('description', ''))} |"
        for one in operation.get("parameters", [])
    ]
    return ["| parameter | in | type | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _model(name: str, schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    rows = []
    for field, one in schema.get("properties", {}).items():
        default = "required" if field in required else f"`{json.dumps(one.get('default'))}`"
        rows.append(f"| `{field}` | {_kind(one)} | {default} | {_plain(one.get('description', ''))} |")
    lines = [f"### {name}", "", _plain(schema.get("description", "")), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    for example in schema.get("examples", []):
        lines += ["```json", json.dumps(example, indent=2, ensure_ascii=False), "```", ""]
    return lines


def _with_parts(names: list[str], schemas: dict[str, Any]) -> list[str]:
    """These models and those they are made of, each once."""
    found: dict[str, None] = {}
    while names:
        name = names.pop(0)
        if name not in found:
            found[name] = None
            names += re.findall(r"#/components/schemas/(\w+)", json.dumps(schemas[name]))
    return list(found)


def _schema(part: dict[str, Any]) -> str:
    for content in part.get("content", {}).values():
        return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
    return ""


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if kinds := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_kind(one) for one in kinds)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def errors_table() -> str:
    rows = ["| code | status | class |", "|---|---|---|"]
    for kind in sorted(_subclasses(errors.RequestError, errors.ServiceError), key=lambda one: (one.status, one.code)):
        rows.append(f"| `{kind.code}` | {kind.status} | `{kind.__name__}` |")
    return "\n".join(rows) + "\n"


def key_file_table() -> str:
    rows = ["| field | needed | meaning |", "|---|---|---|"]
    for path, model in (("", FileContent), ("keys[].", KeyEntry), ("tenants.NAME.", TenantEntry)):
        for name, field in model.model_fields.items():
            needed = "yes" if field.is_required() else "no"
            rows.append(f"| `{path}{field.alias or name}` | {needed} | {field.description} |")
    return "\n".join(rows) + "\n"


def _subclasses(*roots: type[errors.AdaptermuxError]) -> Iterator[type[errors.AdaptermuxError]]:
    for root in roots:
        for kind in root.__subclasses__():
            yield kind
            yield from _subclasses(kind)


if __name__ == "__main__":
    sys.exit(main())
