"""Is it worth starting from the bundled captioner? A few hundred photos as "my own data", both ways.

    python benchmarks/small_data.py DATA [--photos 200] [--json out.json]

DATA is a dataset with a val split (its other splits trained the bundled captioner). `--photos` of val become the own
data, showtell's command trains on them with --init default and --init none, and both, and the untouched bundled
captioner, caption the rest of val. Scores by `showtell.evaluate`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import publish

from showtell import Captioner, Evaluation, __version__, evaluate, read_dataset

SEARCH = "beam:3,length_penalty=0.7"


def trained(folder: Path, init: str) -> Path:
    output = folder / init
    command = [sys.executable, "-m", "showtell", "train", "--data", str(folder / "captions.csv"), "--init", init]
    subprocess.run([*command, "--output", str(output)], check=True)
    return output


def shown(found: Evaluation, captioner: Captioner) -> dict[str, Any]:
    scores = {metric: round(found.scores.corpus[metric], 4) for metric in ("CIDEr-D", "BLEU-4")}
    return {**scores, "vocabulary": len(captioner.vocabulary)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = sorted(read_dataset(options.data).split("val"), key=lambda r: hashlib.sha256(r.id.encode()).digest())
    own, rest = records[: options.photos], records[options.photos :]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (folder / "captions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            writer.writerows([Path(r.image).resolve(), caption] for r in own for caption in r.captions)
        captioners = {
            "bundled, untouched": Captioner.default(),
            "trained, --init default": Captioner.from_pretrained(trained(folder, "default")),
            "trained, --init none": Captioner.from_pretrained(trained(folder, "none")),
        }
    results = {name: evaluate(captioner, rest, search=SEARCH) for name, captioner in captioners.items()}
    signatures = {str(found.signature) for found in results.values()}
    if len(signatures) > 1:
        sys.exit(f"the scores can't be compared: {signatures}")
    result = {
        "what": f"{len(rest)} photos, {SEARCH}; own data: {len(own)} photos",
        **{name: shown(found, captioners[name]) for name, found in results.items()},
        "signature": signatures.pop(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"showtell": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    publish(result, options.json)


if __name__ == "__main__":
    main()
