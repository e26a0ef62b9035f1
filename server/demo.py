"""The demo: start a server over some adapters, ask it a mixed set of texts, print the answers as a table.

    python -m server.demo --adapters adapters --ask device-reviews=training/data/device_reviews/test.csv

It speaks to the server over HTTP only, as any client would.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_TEXTS = 6
START_LIMIT_S = 120
TEXT_WIDTH = 60


class DemoFailed(Exception):
    """Something did not work as it should."""


@dataclass(frozen=True, slots=True)
class Question:
    adapter_id: str
    text: str
    truth: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="python -m server.demo", description="Serve adapters and ask them something.")
    parser.add_argument("--adapters", required=True, help="folder of adapters")
    parser.add_argument("--ask", required=True, action="append", metavar="ID=FILE.csv", help="texts for an adapter")
    parser.add_argument("--base", help="base model, if not the default")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--once", action="store_true", help="stop the server after printing")
    flags = parser.parse_args(arguments)
    url = f"http://127.0.0.1:{flags.port}"
    command = [sys.executable, "-m", "server", "--adapters", flags.adapters, "--port", str(flags.port)]
    server = subprocess.Popen(command + (["--base", flags.base] if flags.base else []))
    try:
        _wait_until_ready(url, server)
        _check_quality(url)
        _ask(url, [question for spec in flags.ask for question in _questions(spec)])
        if not flags.once:
            print(f"\nServing on {url} (API: {url}/docs). Stop with Ctrl-C.", flush=True)
            server.wait()
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait(timeout=30)
    return 0


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoFailed(f"the server ended with exit code {server.returncode}; see its message above")
        try:
            if _get(f"{url}/health/ready")["status"] == "ok":
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise DemoFailed(f"the server was not ready after {START_LIMIT_S} s")


def _check_quality(url: str) -> None:
    """Print what each adapter reached on its test split; one that is no better than a linear model fails the demo."""
    print(f"\n{'adapter':<18}{'method':<8}{'test accuracy':<24}TF-IDF + logistic regression")
    for entry in _get(f"{url}/v1/adapters")["adapters"]:
        if entry["status"] != "ready":
            raise DemoFailed(f"adapter `{entry['adapter_id']}` was refused: {entry['reason']}")
        metrics = entry["metrics"] or {}
        shown = [_interval(metrics[name]) for name in ("test_accuracy", "floor_test_accuracy") if name in metrics]
        print(f"{entry['adapter_id']:<18}{entry['method']:<8}" + "".join(f"{one:<24}" for one in shown))
        if len(shown) == 2 and metrics["test_accuracy"]["value"] <= metrics["floor_test_accuracy"]["value"]:
            raise DemoFailed(f"adapter `{entry['adapter_id']}` does not beat a linear model on its test split")


def _ask(url: str, questions: list[Question]) -> None:
    """Send every question at once, so that adapters and methods share batches, and print the answers."""

    def send(question: Question) -> dict[str, Any]:
        return _post(f"{url}/v1/classify", {"adapter_id": question.adapter_id, "inputs": question.text, "top_k": 1})

    with ThreadPoolExecutor(len(questions)) as pool:
        answers = list(pool.map(send, questions))
    print(
        f"\n{'adapter':<18}{'text':<{TEXT_WIDTH + 2}}{'label':<18}{'score':>6}{'queue ms':>10}{'compute ms':>12}  truth"
    )
    for question, answer in zip(questions, answers, strict=True):
        best, timing = answer["predictions"][0], answer["timing_ms"]
        verdict = "as expected" if best["label"] == question.truth else f"expected {question.truth}"
        text = textwrap.shorten(question.text, TEXT_WIDTH, placeholder=" ...")
        print(
            f"{question.adapter_id:<18}{text:<{TEXT_WIDTH + 2}}"
            f"{best['label']:<18}{best['score']:>6.3f}{timing['queue']:>10.1f}{timing['compute']:>12.1f}  {verdict}"
        )


def _questions(spec: str) -> list[Question]:
    adapter_id, _, path = spec.partition("=")
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [Question(adapter_id, row["text"], row["label"]) for row in random.Random(0).sample(rows, NUM_TEXTS)]


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        raise DemoFailed(f"the server answered {error.code}: {error.read().decode()}") from error


if __name__ == "__main__":
    sys.exit(main())
