"""What is measured: a file that names a service, its adapters, a workload, and what is varied."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from loadtest.errors import Misuse
from loadtest.service import Setting
from loadtest.workload import Part, Workload, check_texts

FOLDER = Path(__file__).parent / "scenarios"
TYPICAL = 8
"""Rates that a search tries."""
OURS = ("adapters", "port", "host", "state", "source_root", "look_s", "keys", "base", "adapter_bytes")
"""Settings of the service that the harness chooses itself."""


class Adapters(Part):
    """What the service knows. The adapters have random weights."""

    methods: list[str] = Field(min_length=1)
    num_registered: int = Field(1, ge=1, le=100_000)
    """In all, as many of each method."""
    options: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Of a method, where they are not its defaults."""
    cache_share: float | None = Field(None, gt=0)
    """How much room the service has for adapters in memory, as a part of what the hot ones need together."""


class Case(Part):
    """One thing to measure; a scenario without what it varies."""

    base: str | None = None
    """A folder or a hub id; the service's default if not given."""
    service: dict[str, Setting] = Field(default_factory=dict)
    """Settings of `adaptermux-serve`, by their names."""
    adapters: Adapters
    workload: Workload
    warmup_s: float = Field(3.0, ge=0)
    """Not measured."""
    duration_s: float = Field(15.0, gt=0)
    changes_per_s: float = Field(0.0, ge=0, le=100)
    """Adapters that are loaded, flipped or removed meanwhile."""
    limit_p95_ms: float | None = Field(None, gt=0)
    """Look for the highest rate whose 95th percentile stays below; the search begins at the workload's rate."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ours = sorted(set(OURS) & set(self.service))
        if ours:
            raise ValueError(f"`service.{ours[0]}` is set by the load test itself")
        chosen = self.workload.methods or self.adapters.methods
        unknown = sorted(set(chosen) - set(self.adapters.methods))
        if unknown:
            raise ValueError(f"`workload.methods` names `{unknown[0]}`, of which `adapters.methods` makes none")
        room = self.adapters.num_registered * len(chosen) // len(self.adapters.methods)
        if self.workload.num_hot > max(1, room):
            raise ValueError(f"`workload.num_hot` is {self.workload.num_hot}, and only {room} such are registered")
        if self.limit_p95_ms is not None and self.workload.rate_per_s is None:
            raise ValueError("`limit_p95_ms` looks for a rate: give `workload.rate_per_s` to begin with")
        check_texts(self.workload.texts)
        return self


class Scenario(Part):
    """Every case, and how often each is measured; the cases take turns."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    repeats: int = Field(1, ge=1)
    cases: dict[str, Case]
    """By what sets each apart, in the order of what is varied."""

    @property
    def seconds(self) -> float:
        """Of load in all, about."""
        return self.repeats * sum(
            (case.warmup_s + case.duration_s) * (1 if case.limit_p95_ms is None else TYPICAL)
            for case in self.cases.values()
        )


def names() -> list[str]:
    """Of the scenarios that come with adaptermux."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, changes: Sequence[str] = ()) -> Scenario:
    """One of ours by its name, or a TOML file. changes: `KEY=VALUE`, set in it. Raises Misuse naming what is wrong."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.exists():
        known = ", ".join(names())
        raise Misuse(f"there is no scenario `{name}`; take one of {known}, or a file that ends in .toml")
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Misuse(f"scenario `{path}` cannot be read: {error}") from error
    changed: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise Misuse(f"--set {change}: it must be KEY=VALUE, such as duration_s=5")
        changed[key.strip()] = _value(value)
    return _parse(path, record, changed)


def _parse(path: Path, record: dict[str, Any], changed: dict[str, Any]) -> Scenario:
    """changed: values by key that hold for every case, whatever the file says or varies."""
    vary = record.pop("vary", {})
    if not isinstance(vary, dict) or not all(isinstance(values, list) and values for values in vary.values()):
        raise Misuse(f'scenario `{path}`: `vary` holds lists by key, such as "workload.num_hot" = [1, 8]')
    vary = {key: values for key, values in vary.items() if key not in changed}
    inner = {key: value for key, value in changed.items() if any(key.startswith(f"{name}.") for name in vary)}
    record = _varied(record, changed)
    about = {key: record.pop(key) for key in ("name", "description", "repeats") if key in record}
    about.setdefault("name", path.stem)
    try:
        cases = {
            name: Case.model_validate(_varied(_varied(record, setting), inner)) for name, setting in _settings(vary)
        }
        return Scenario(**about, cases=cases)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the scenario"
        said = "there is no such key" if first["type"] == "extra_forbidden" else first["msg"]
        raise Misuse(f"scenario `{path}`: `{place}`: {said.removeprefix('Value error, ')}") from error


def _settings(vary: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination, with a name that says what is special about it."""
    for values in itertools.product(*vary.values()):
        setting = dict(zip(vary, values, strict=True))
        yield ", ".join(_shown(key, value) for key, value in setting.items()) or "all", setting


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(_shown(name, one) for name, one in value.items())
    if isinstance(value, list):
        return "+".join(map(str, value))
    return value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"


def _varied(record: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    for key, value in setting.items():
        record = _with(record, key, value)
    return record


def _with(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed. key: names with dots between."""
    head, _, rest = key.partition(".")
    inner = record.get(head, {})
    if rest and not isinstance(inner, dict):
        raise Misuse(f"`{key}` cannot be set: `{head}` holds no names")
    return {**record, head: _with(inner, rest, value) if rest else value}


def _value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
