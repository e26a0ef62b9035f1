"""A file that says which adapters are served and where each comes from: `--adapters adapters.json`.

It is looked at as a folder or bucket is, so whoever writes the file (a ConfigMap, say) adds, replaces and removes
adapters while the server runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.adapter_files import FileState, Look
from server.errors import SourceUnreachable
from server.manifest import ADAPTER_ID

SUFFIX = ".json"
Name = Annotated[str, Field(pattern=f"^(?:{ADAPTER_ID.pattern})$")]
Source = Annotated[str, Field(min_length=1, max_length=2000)]


class ListContent(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    version: Literal[1] = Field(alias="schema")
    """Of this format."""
    adapters: dict[Name, Source]
    """Source of each adapter by its id: s3://bucket/prefix, gs://bucket/prefix, hf:org/name@revision or file:/path."""


class ListRoot:
    """The file. Owned by the thread that asks it for listings.

    An adapter has changed once its source is another text: what lies there is not looked at, so a source should hold
    one content for good, as a prefix with a version or a commit does.
    """

    is_atomic = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sources: dict[str, str] = {}

    def listing(self) -> dict[str, Look]:
        try:
            content = ListContent.model_validate(json.loads(self.path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceUnreachable(f"list of adapters `{self.path}` cannot be read: {_reason(error)}") from error
        self._sources = content.adapters
        return {name: {"source": FileState(0, source)} for name, source in content.adapters.items()}

    def source(self, name: str) -> str | None:
        return self._sources[name]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return getattr(error, "strerror", None) or str(error)
