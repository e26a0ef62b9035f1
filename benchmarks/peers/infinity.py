"""A peer: infinity, which serves one classifier without adapters.

    make peers
    python -m benchmarks.peers.infinity

Serves the base model with a random head, which is as fast as a trained one, by `POST /classify`. infinity lives in an
environment of its own, for it needs an older transformers. Its batching and its BetterTransformer, which packs texts
on the CPU and is faster than padding them, are left as it has them; its usage statistics and its log of every request
are off.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from server import logs
from server.base_model import EMBEDDED_ID, locate

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = ROOT / ".venv-infinity"
NUM_LABELS = 6
START_S = 180
MODEL_ID = "base"


def is_installed(environment: Path = ENVIRONMENT) -> bool:
    return _program(environment).exists()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="where it is installed (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--threads", type=int, help="of a forward pass; torch's own choice if not given")
    flags = parser.parse_args()
    if not is_installed(flags.environment):
        print(f"infinity is not installed in `{flags.environment}`; run `make peers`", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL_ID
        _write_model(model)
        port = flags.port or _free_port()
        command = [
            str(_program(flags.environment)), "v2", "--model-id", str(model), "--served-model-name", MODEL_ID,
            "--engine", "torch", "--device", "cpu", "--dtype", flags.dtype, "--log-level", "error",
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(command, env=_environment(flags.threads), stdout=file, stderr=file)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _starts(url, process):
                print(f"infinity did not start:\n{output.read_text(encoding='utf-8')}", file=sys.stderr)
                return 1
            logs.event("server_started", url=url)
            return process.wait()
        finally:
            process.terminate()
            process.wait()


def _program(environment: Path) -> Path:
    return environment / "bin" / "infinity_emb"


def _write_model(folder: Path) -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    from training.model import PooledClassifier

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    PooledClassifier.load(EMBEDDED_ID, NUM_LABELS, "native").save_pretrained(folder)
    for pattern in ("tokenizer*.json", "special_tokens_map.json", "vocab.txt"):
        for path in locate(EMBEDDED_ID).glob(pattern):
            shutil.copy(path, folder)


def _environment(threads: int | None) -> dict[str, str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    return environment if threads is None else environment | {"OMP_NUM_THREADS": str(threads)}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _starts(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


if __name__ == "__main__":
    sys.exit(main())
