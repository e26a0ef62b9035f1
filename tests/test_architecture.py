"""The arrows between our packages and files, and what each side may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "training", "loadtest", "decision")
OPTIONAL = {"server.triton_kernels": "triton", "server.triton_cache": "triton"}
"""What a module of ours needs that is not everywhere."""
ENGINE_SIDE = (
    "engine", "batching", "batch_budget", "retries", "residency", "forward", "segments", "packed_encoder",
    "library_encoder", "frozen_linear", "kernels", "products", "attention", "store", "host_tier", "loaded_adapter",
    "device_memory", "memory_budget", "device_code", "device_trial", "grouped", "triton_kernels", "varlen_attention",
    "grouped_heads", "triton_cache", "recorder", "fixed_batch", "graphs", "heads", "adapter_files", "adapter_folder",
    "weights_file", "methods", "families", "base_model", "manifest", "number_format", "rotary", "jobs", "errors",
    "logs",
)  # fmt: skip
HTTP_SIDE = (
    "app", "routes", "wire", "problems", "description", "desk", "callers", "classification", "ledger", "schemas",
    "catalog", "sources", "bucket", "hub", "watch", "tokenizer", "settings", "metrics", "state_metrics", "activation",
    "command", "client", "asker", "rows", "partial_file", "bulk", "keys", "admission", "quotas", "trail", "failures",
    "edges", "request_limits", "connections", "gate", "tracing", "messages", "link", "exchange", "remote", "fronts",
    "processes", "adapter_list", "advice", "record", "input_checks",
)  # fmt: skip
COMPOSITION = ("service", "lifecycle", "follower", "check", "base_fetch", "demo", "__main__")

# What one package may import of another
ALLOWED = {
    "training": ("server.methods", "server.families", "server.heads", "server.manifest", "server.base_model",
                 "server.number_format", "server.products", "server.tokenizer", "server.errors",
                 "server.adapter_files", "server.weights_file", "server.sources", "server.bucket", "server.hub",
                 "decision.rows", "decision.provenance", "decision.bootstrap", "decision.comparison",
                 "decision.outcomes", "decision.measured_cell"),
    "loadtest": ("decision.rows", "decision.provenance"),
    "server": ("decision.web", "decision.question", "decision.answer", "decision.errors", "decision.rows"),
    "decision": (),
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Our own modules that a file imports, type-checking imports left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    skipped = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in tree.body if top_level_only else ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            known = modules()
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                for alias in node.names
            }
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("name", list(modules()))
def test_packages_import_only_what_their_arrows_allow(name: str) -> None:
    package = name.split(".")[0]
    for other in imports(modules()[name]):
        if other.split(".")[0] == package or other == "server":  # `server` alone holds the version
            continue
        assert other.startswith(ALLOWED[package]), f"{name} imports {other}"


def test_there_are_no_import_cycles() -> None:
    graph = {name: imports(path, top_level_only=True) & set(modules()) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph[name]:
                if not name.startswith(f"{other}."):  # a package's __init__ names its own modules
                    visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_is_named_like_the_standard_library_or_like_nothing() -> None:
    vague = {"utils", "util", "common", "helpers", "misc", "bottleneck"}
    for name, path in modules().items():
        last = name.split(".")[-1]
        if path.name in ("__init__.py", "__main__.py"):
            continue
        assert last not in sys.stdlib_module_names, f"{name} is named like a standard-library module"
        if name.count(".") == 1:
            assert last not in vague, f"{name} says nothing"


def test_every_server_module_is_on_one_side() -> None:
    names = {name.split(".")[1] for name in modules() if name.startswith("server.")}
    assert names == {*ENGINE_SIDE, *HTTP_SIDE, *COMPOSITION}


def loaded_after(names: list[str], forbidden: list[str]) -> str:
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\n"
    code += f"print(sorted(set({forbidden!r}) & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_engine_side_runs_without_fastapi_pydantic_and_peft() -> None:
    names = [
        name
        for name in modules()
        if name.startswith("server.") and name.split(".")[1] in ENGINE_SIDE
        if name not in OPTIONAL or find_spec(OPTIONAL[name])
    ]
    forbidden = ["fastapi", "starlette", "pydantic", "peft", "prometheus_client", "uvicorn", "datasets", "sklearn"]
    code = f"""
import sys
for name in {forbidden!r}:
    sys.modules[name] = None  # importing it would raise
import importlib
for name in {names!r}:
    importlib.import_module(name)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_http_side_never_imports_torch() -> None:
    names = [f"server.{name}" for name in HTTP_SIDE]
    assert loaded_after(names, ["torch", "transformers", "safetensors", "peft"]).strip() == "[]"


METHOD_NAMES = ("lora", "ia3", "bitfit", "bottleneck", "prefix", "head")


def test_adding_a_method_touches_one_file() -> None:
    """No file outside `server/methods` names a method."""
    for name, path in modules().items():
        if name.startswith(("server.methods", "server.families", "training.peft_")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value.lower() not in METHOD_NAMES, f"{name} line {node.lineno} names a method"
