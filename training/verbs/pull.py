"""`adaptermux-train pull`: fetch an adapter from a hub, a bucket or a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "fetch an adapter from a hub, a bucket or a folder"
DESCRIPTION = "Fetch an adapter. Its folder appears once the weights are known to be those of its manifest."
EXAMPLE = "adaptermux-train pull file:shared/device-reviews --output adapters/device-reviews"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a pull can be told."""
    parser.add_argument("source", help="hf:owner/name[@revision], s3:// or gs://bucket/prefix, file:folder")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; its name is the adapter's id")
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that exists")


def run(flags: argparse.Namespace) -> int:
    from training.transfer import pull

    got = pull(flags.source, flags.output, flags.overwrite)
    print(f"{flags.output} is {got.source}, {got.num_bytes:,} bytes")
    if got.manifest is None:
        print("note: no adapter.json: nothing says what its weights should be, and its labels have no names")
    else:
        print(f"  {got.manifest.method} on {got.manifest.base_name}, {len(got.manifest.labels)} labels")
        print(f"  weights sha256 {got.manifest.weights_sha256}, as its manifest says")
    return 0
