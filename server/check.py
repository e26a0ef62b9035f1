"""`adaptermux-serve check`: say of adapter folders what a server would, without starting one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from server import adapter_folder
from server.adapter_files import CONFIG_FILE, PICKLE_FILES, WEIGHTS_FILE
from server.base_model import BaseModel
from server.errors import SettingsError
from server.forward import load_base
from server.manifest import FILE_NAME
from server.record import AdapterCard, Refusal, printable, refusal_of
from server.residency import key_of
from server.settings import Settings
from server.store import Store, quarter_of_memory

SHOWN_LABELS = 5


def check_all(settings: Settings, as_json: bool) -> int:
    """Print one line for every adapter folder. The exit code: 0 if all of them would be served, else 1."""
    root, names = find(Path(settings.adapters))
    base = load_base(settings.base, settings.device, settings.dtype)
    store = Store(base, settings.adapter_bytes or quarter_of_memory(base.device))
    width = max(map(len, names))
    num_refused = 0
    try:
        for name in names:
            card = check(root, name, base, store)
            num_refused += isinstance(card, Refusal)
            print(_json_line(name, card) if as_json else _table_line(name, card, width), flush=True)
    finally:
        store.close()
    return 1 if num_refused else 0


def find(folder: Path) -> tuple[Path, list[str]]:
    """The root and the names below it: `folder` is one adapter, or holds adapters. Raises SettingsError."""
    if not folder.is_dir():
        raise SettingsError(f"`{folder}` is no folder")
    if any(os.path.lexists(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, FILE_NAME, *PICKLE_FILES)):
        whole = Path(os.path.abspath(folder))  # not resolved: a server would see the name of a link, too
        return whole.parent, [whole.name]
    names = adapter_folder.scan(folder)
    if not names:
        raise SettingsError(f"`{folder}` is no adapter folder ({CONFIG_FILE}, {WEIGHTS_FILE}) and holds none")
    return folder, names


def check(root: Path, name: str, base: BaseModel, store: Store) -> AdapterCard | Refusal:
    """Read a folder and load its weights, as a server does when the adapter is first asked for."""
    try:
        folder = adapter_folder.read(root, name, base)
        store.load(folder)
        store.unregister(key_of(folder.adapter_id, folder.version))
    except Exception as error:  # one folder must never stop the others, whatever it holds
        return refusal_of(error)
    return AdapterCard(name, folder.version, folder.manifest, folder.weights.num_bytes, folder.warnings)


def _json_line(name: str, card: AdapterCard | Refusal) -> str:
    record: dict[str, object] = {"adapter_id": printable(name)}
    if isinstance(card, Refusal):
        record |= {"status": "refused", "code": card.code, "reason": card.reason}
    else:
        record |= {
            "status": "ok",
            "version": card.version,
            "method": card.manifest.method,
            "problem_type": card.manifest.problem_type,
            "labels": card.manifest.labels,
            "num_bytes": card.num_bytes,
            "warnings": card.warnings,
        }
    return json.dumps(record)


def _table_line(name: str, card: AdapterCard | Refusal, width: int) -> str:
    if isinstance(card, Refusal):
        line = f"refused  {printable(name):<{width}}  {card.code}: {card.reason}"
    else:
        line = (
            f"ok       {name:<{width}}  {card.manifest.method:<10}  {card.version}  "
            f"{card.num_bytes:>11,} bytes  {_labels(card.manifest.labels)}"
        ) + "".join(f"; warning: {warning}" for warning in card.warnings)
    # what a folder says of itself may hold line ends, or orders to the terminal
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def _labels(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
    return f"{len(labels)} label{'s' if len(labels) > 1 else ''}: {shown}"
