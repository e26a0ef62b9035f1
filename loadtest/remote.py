"""A running service, as anybody may ask it over HTTP."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loadtest.errors import LoadTestError

TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Adapter:
    """One that a service is ready to answer with. num_bytes: of its weights."""

    adapter_id: str
    method: str
    num_bytes: int


@dataclass(frozen=True)
class Remote:
    """headers: sent with every request."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def base(self) -> dict[str, Any]:
        """What `GET /v1/base` says. Raises LoadTestError, as all of these do."""
        return self.ask("GET", "/v1/base")

    def adapters(self) -> list[Adapter]:
        """Those that are ready, in order of id."""
        return [
            Adapter(one["adapter_id"], one["method"], one["num_bytes"])
            for one in self.ask("GET", "/v1/adapters")["adapters"]
            if one["status"] == "ready"
        ]

    def metrics(self) -> dict[str, float]:
        """Every metric's value, summed over its labels."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self._read("GET", "/metrics", None).decode()):
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """What a route answers."""
        try:
            answer = json.loads(self._read(method, path, body) or b"{}")
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LoadTestError(f"{method} {self.url}{path} did not answer with a JSON object: is it adaptermux?")
        return answer

    def _read(self, method: str, path: str, body: object) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self.headers}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode("utf-8", "replace")
            raise LoadTestError(f"{method} {self.url}{path} answered {error.code}: {text}") from error
        except (OSError, http.client.HTTPException) as error:
            raise LoadTestError(f"{self.url} does not answer: {error}") from error
