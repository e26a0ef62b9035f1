"""`adaptermux-train push`: put an adapter on a hub, into a bucket or into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "put an adapter on a hub, into a bucket or into a folder"
DESCRIPTION = "Put an adapter, checked, where servers and others fetch it. A half-made upload is never taken for whole."
EXAMPLE = "adaptermux-train push adapters/device-reviews file:shared/device-reviews"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a push can be told."""
    parser.add_argument("adapter", type=Path, help="folder that `run` has written")
    parser.add_argument(
        "destination", help="hf:owner/name[@branch], s3://bucket/prefix, gs://bucket/prefix, file:folder"
    )
    parser.add_argument("--public", action="store_true", help="make a new hub repository public; private otherwise")
    parser.add_argument("--overwrite", action="store_true", help="replace an adapter in a bucket or folder")


def run(flags: argparse.Namespace) -> int:
    from training.transfer import push

    done = push(flags.adapter, flags.destination, flags.public, flags.overwrite)
    print(f"{flags.adapter} is at {done.destination}")
    for name, num_bytes in done.num_bytes.items():
        print(f"  {name:<28} {num_bytes:>12,} bytes")
    print(f"  weights sha256 {done.weights_sha256}")
    return 0
