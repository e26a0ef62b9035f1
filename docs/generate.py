"""Write the generated parts of the documents: `make docs`. A test fails when one of them is stale.

A generated part lies between `<!-- generated: NAME -->` and `<!-- end generated -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from server import errors
from server.keys import FileContent, KeyEntry, TenantEntry
from server.metrics import Metrics
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
    return 0


def refreshed(text: str) -> str:
    """The document with its generated parts as they should be."""
    parts = {
        "settings": settings_table,
        "metrics": metrics_table,
        "errors": errors_table,
        "key_file": key_file_table,
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
