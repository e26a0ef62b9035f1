"""Everything the server can be told: one class, whose docstrings are the help texts.

A setting comes from its flag (`--max-batch-tokens`), else from its environment variable
(`ADAPTERMUX_MAX_BATCH_TOKENS`), else from its default. Nothing else in the server reads the environment.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.adapter_list import SUFFIX as LIST_SUFFIX
from server.errors import SettingsError

STATE_FOLDER = ".adaptermux"
ENVIRONMENT_PREFIX = "ADAPTERMUX_"
CLIENT_KEY = "ADAPTERMUX_API_KEY"
"""For `adaptermux-serve classify` only: a server that is started beside it lets it be."""


class Settings(BaseModel):
    """Settings of `adaptermux-serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    adapters: Annotated[str, BeforeValidator(os.fspath)]
    """Folder, s3://bucket/prefix or gs://... of adapter folders, or a .json file that lists adapters and sources."""
    look_s: float = Field(5, ge=0)
    """Seconds between two looks at it for adapters that came, changed or went; 0 looks at the start only."""
    source_root: str = ""
    """What PUT may fetch adapters from, with commas between: folders, s3://bucket/prefix, gs://..., hf:organisation."""
    state: str = ""
    """Folder for fetched versions, aliases and tags; `.adaptermux` in the adapters folder if not given."""
    keep_versions: int = Field(5, ge=0)
    """Versions of an adapter that are kept for a rollback, beside those in use."""
    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Base model: a folder or a hub id."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the base model; auto takes bfloat16 where the device multiplies it faster."""
    threads: int = Field(0, ge=0)
    """Threads of a forward pass on the CPU; 0 leaves one core to the HTTP side."""
    kernels: Literal["auto", "off"] = "auto"
    """auto runs compiled code: of C with AVX-512, or of Triton on a GPU; off leaves all to torch."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """auto records small passes and runs them again in one call, where --kernels are used on a GPU; off does not."""
    keys: Path | None = None
    """File of the keys that callers need (docs/security.md); without one, everybody may do everything."""
    max_inputs: int = Field(256, ge=1, le=10_000)
    """Most texts in one request."""
    max_body_bytes: int = Field(2 << 20, ge=1024)
    """Longest body of a request; a longer one is refused before it is read."""
    read_s: float = Field(30, gt=0)
    """Seconds that a client is given to send a request's head, to send its body, and to take the answer."""
    keep_alive_s: int = Field(75, ge=1)
    """Seconds that a connection is kept between two requests; more than a balancer in front keeps it (most keep 60)."""
    max_connections: int = Field(4096, ge=1)
    """Most connections at one time; a further one is answered 503 and closed."""
    cors_origins: str = ""
    """Origins of web pages whose scripts may call this server, with commas between: `https://app.example.org`."""
    pages: bool = True
    """false serves no pages for people (`/`, `/decision`), only the API."""
    evidence: Path | None = None
    """Folder of rows that `/decision` and `/v1/decision` answer from; those that come with adaptermux if not given."""
    prices: Path | None = None
    """Table of prices (TOML) that they reckon with; examples if not given."""
    access_log: bool = False
    """true logs a line for every request: route, status, time, request id, key id and tenant."""
    otlp_endpoint: str = ""
    """OpenTelemetry collector that gets a span for every request: `http://collector:4318`; needs the extra `otel`."""
    http_processes: int = Field(0, ge=0, le=64)
    """Processes of their own for the HTTP side, beside one for the engine; 0 does all in one process."""
    drain_s: int = Field(30, ge=0)
    """Seconds that requests in flight are given when the server is told to stop."""
    max_batch_tokens: int = Field(8192, ge=1)
    """Most tokens in one forward pass, which bounds its memory; a single longer text still runs, alone."""
    batch_ms: float = Field(25, gt=0)
    """Time that a forward pass should take: it is given as many tokens as have run in that time lately."""
    max_waiting: int = Field(4096, ge=1)
    """Most texts that may wait for the engine; beyond it requests are answered 503."""
    max_wait_s: float = Field(30, ge=0)
    """Seconds that a text may wait whose request names no time; one that would wait longer is answered 503; 0: any."""
    stall_s: float = Field(60, ge=0)
    """Seconds of one forward pass (ten times as many for the first) after which the server is not alive; 0: never."""
    adapter_bytes: int = Field(0, ge=0)
    """Most bytes of adapters on the base model's device; 0 takes a quarter of its memory, on a GPU all that is left."""
    host_adapter_bytes: int = Field(0, ge=0)
    """Most bytes of adapters kept in host memory for a base model on a GPU; 0 takes a quarter of it."""
    preload: int = Field(1000, ge=0)
    """Adapters loaded before the server listens, as far as they have room; others load when first asked for."""
    metrics_top_adapters: int = Field(100, ge=0)
    """Adapters that get a metric label of their own; the others share `other`."""

    @property
    def source_roots(self) -> list[str]:
        return [root.strip() for root in self.source_root.split(",") if root.strip()]

    @property
    def state_folder(self) -> Path:
        return Path(self.state) if self.state else Path(self.adapters) / STATE_FOLDER


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser one flag for every setting."""
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"default {field.default}"
        parser.add_argument(flag_of(name), metavar="X", default=None, help=f"{field.description} ({default})")


def read_settings(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """Join flags and environment; raises SettingsError naming the flag or variable that is wrong."""
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in Settings.model_fields}
    values: dict[str, str] = {}
    sources = {name: flag_of(name) for name in Settings.model_fields}  # where each value came from
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable != CLIENT_KEY:
            if variable not in known:
                near = difflib.get_close_matches(variable, known, n=1)
                hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(sorted(known))
                raise SettingsError(f"environment variable {variable} is no setting; {hint}")
            values[known[variable]], sources[known[variable]] = value, variable
    for name, given in flags.items():
        if given is not None:
            values[name], sources[name] = given, flag_of(name)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        shown = f", not {first['input']!r}" if first["type"] != "missing" else ""
        raise SettingsError(f"{sources[str(first['loc'][0])]}: {first['msg']}{shown}") from error
    if ("://" in settings.adapters or settings.adapters.endswith(LIST_SUFFIX)) and not settings.state:
        raise SettingsError("--state is missing: adapters of a bucket or a list are fetched into that folder")
    most_inputs = min(settings.max_waiting, settings.max_waiting * 7 // 8 + 1)  # what one adapter may have in the line
    if settings.max_inputs > most_inputs:
        raise SettingsError(
            f"--max-inputs is {settings.max_inputs}, more than the {most_inputs} of one adapter that may wait "
            f"(--max-waiting {settings.max_waiting})"
        )
    return settings


def read_client_key(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key that a client shows: from its file, else from the environment, else none. Raises SettingsError."""
    source = f"--api-key-file `{file}`" if file is not None else CLIENT_KEY
    try:
        key = file.read_text(encoding="ascii") if file is not None else environment.get(CLIENT_KEY)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source} cannot be read: {error}") from error
    if key is None:
        return None
    key = key.strip()
    if not key.isascii() or not key.isprintable() or not key or " " in key:
        raise SettingsError(f"{source} holds no key; it must be one line of ASCII letters, digits and signs")
    return key
