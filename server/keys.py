"""The key file: who may ask, for what and how much. It is read again while the server runs.

A key is 256 random bits, so a plain sha256 of it is as safe as a slow hash: there is no smaller set to guess from.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from server import logs
from server.callers import SCOPES, Caller, Limits, Scope
from server.errors import SettingsError

SCHEMA = 1
PREFIX = "amx_"
CHECK_EVERY_S = 1.0
MAX_FILE_BYTES = 16 << 20
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
PATTERN = r"^[A-Za-z0-9._*?!\[\]-]{1,128}$"
UNKNOWN = bytes(32)


class KeyEntry(BaseModel):
    """One key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=NAME)]
    """Name of the key in logs; not secret."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """sha256 of the key, in hexadecimal. The key itself stands nowhere."""
    tenant: str | None = None
    """A name in `tenants`; null for operators, who see all adapters and have no quota."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    """`classify`, `admin` (change adapters), `metrics` (not with a tenant: metrics name all adapters)."""
    expires: AwareDatetime | None = None
    """Time from which on it is refused, such as `2027-01-31T00:00:00Z`; null for never."""


class TenantEntry(BaseModel):
    """What the keys of one tenant share."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    adapters: Annotated[tuple[Annotated[str, Field(pattern=PATTERN)], ...], Field(min_length=1)]
    """Patterns of the adapter ids they may see, use and make, as in a shell: `acme-*`."""
    requests_per_minute: PositiveInt | None = None
    """Most classification requests a minute."""
    texts_per_minute: PositiveInt | None = None
    """Most texts a minute; a text for three adapters counts three times."""
    tokens_per_minute: PositiveInt | None = None
    """Most tokens a minute, special tokens included. A text that there was no room for costs none."""
    max_waiting: PositiveInt | None = None
    """Most texts that are being classified at one time."""


class FileContent(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    schema_number: Annotated[Literal[1], Field(alias="schema")]
    """Of this format."""
    keys: tuple[KeyEntry, ...]
    """All keys. A key that is taken out is refused within a second."""
    tenants: dict[Annotated[str, Field(pattern=NAME)], TenantEntry] = {}
    """Tenants by name."""


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    caller: Caller
    expires: float | None


class Keys:
    """The keys of a file. The event loop alone calls it: at most once a second, a request reads the file again.

    The file may be replaced, written anew or, as a Kubernetes Secret, be a link that moves. While it is missing or
    wrong, the keys that were read last stay.
    """

    def __init__(
        self,
        path: Path,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Raises SettingsError."""
        self.is_fresh = True
        self._path, self._monotonic, self._now = path, monotonic, now
        self._raw = _read(path)
        self._keys = _parse(self._raw, path)
        self._looked_at = monotonic()
        self._warn_if_open()

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, key: bytes) -> Caller | None:
        """Who holds a key; None for one that is unknown or has expired. It takes as long for one as for another."""
        self._look_again()
        digest = hashlib.sha256(key).digest()
        found = self._keys.get(digest)
        is_same = hmac.compare_digest(digest, found.digest if found is not None else UNKNOWN)
        if found is None or not is_same or (found.expires is not None and self._now() >= found.expires):
            return None
        return found.caller

    def _look_again(self) -> None:
        if self._monotonic() - self._looked_at < CHECK_EVERY_S:
            return
        self._looked_at = self._monotonic()
        try:
            raw = _read(self._path)
            if raw != self._raw:
                self._keys = _parse(raw, self._path)
                self._raw = raw
                logs.event("keys_read", num_keys=len(self._keys))
                self._warn_if_open()
            self.is_fresh = True
        except SettingsError as error:
            if self.is_fresh:
                logs.event("keys_refused", reason=str(error), kept=len(self._keys))
            self.is_fresh = False

    def _warn_if_open(self) -> None:
        mode = 0
        with suppress(OSError):  # it is being replaced, and read again soon
            mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & stat.S_IROTH:
            logs.event("key_file_world_readable", path=str(self._path), mode=f"{mode:o}", better="chmod o-r")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"--keys: `{path}` cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise SettingsError(f"--keys: `{path}` has more than {MAX_FILE_BYTES} bytes")
    return raw


def _parse(raw: bytes, path: Path) -> Mapping[bytes, _Key]:
    """The keys by their digest. A message never holds a value of the file: somebody may have put a key there."""
    try:
        json.loads(raw, object_pairs_hook=_no_name_twice)
        content = FileContent.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise SettingsError(f"--keys: `{path}`: `{_place(first['loc'])}`: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--keys: `{path}` is not JSON: {error}") from error
    keys: dict[bytes, _Key] = {}
    ids: set[str] = set()
    for index, entry in enumerate(content.keys):
        digest = bytes.fromhex(entry.sha256)
        if (wrong := _wrong(entry, content, ids, digest in keys)) is not None:
            raise SettingsError(f"--keys: `{path}`: `keys[{index}].{wrong[0]}`: {wrong[1]}")
        ids.add(entry.id)
        expires = entry.expires.timestamp() if entry.expires is not None else None
        keys[digest] = _Key(digest, _caller(entry, content), expires)
    return keys


def _wrong(entry: KeyEntry, content: FileContent, ids: set[str], is_known: bool) -> tuple[str, str] | None:
    """Field and reason, where an entry does not fit the others."""
    if entry.id in ids:
        return "id", f"`{entry.id}` is the id of another key too"
    if is_known:
        return "sha256", "another entry has the same key"
    if entry.tenant is not None and entry.tenant not in content.tenants:
        return "tenant", "it is not in `tenants`"
    if entry.tenant is not None and "metrics" in entry.scopes:
        return "scopes", "`metrics` is for keys without a tenant: metrics name all adapters"
    return None


def _caller(entry: KeyEntry, content: FileContent) -> Caller:
    if entry.tenant is None:
        return Caller(entry.id, scopes=frozenset(entry.scopes))
    tenant = content.tenants[entry.tenant]
    limits = Limits(tenant.requests_per_minute, tenant.texts_per_minute, tenant.tokens_per_minute, tenant.max_waiting)
    return Caller(entry.id, entry.tenant, frozenset(entry.scopes), tenant.adapters, limits)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("an object has the same name twice")
    return dict(pairs)


def _place(location: tuple[int | str, ...]) -> str:
    """`("keys", 3, "id")` -> `keys[3].id`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") or "file"


def add_make_key_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `make-key`."""
    parser.add_argument("--id", required=True, help="name of the key in logs")
    parser.add_argument("--tenant", help="a name in the file's `tenants`; none for operators")
    parser.add_argument("--scope", action="append", choices=sorted(SCOPES), help="may be given again (classify)")
    parser.add_argument("--expires", metavar="TIME", help="such as 2027-01-31T00:00:00Z; never if not given")


def make_key(flags: Mapping[str, Any]) -> int:
    """Print a new key, which nobody can print again, and behind it the entry for the key file. Raises SettingsError."""
    key = PREFIX + secrets.token_urlsafe(32)
    entry = {
        "id": flags["id"],
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "tenant": flags["tenant"],
        "scopes": sorted(set(flags["scope"] or ["classify"])),
        "expires": flags["expires"],
    }
    try:
        parsed = KeyEntry.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"--{first['loc'][0]}: {first['msg']}, not {first['input']!r}") from error
    if parsed.tenant is not None and "metrics" in parsed.scopes:
        raise SettingsError("--scope: `metrics` is for keys without a tenant: metrics name all adapters")
    print(key)
    print(json.dumps(entry))
    return 0
