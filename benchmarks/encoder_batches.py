"""What taking a few photos at a time buys on a CPU: 32 photos in one go against the encoder's own way, in one run.

python benchmarks/encoder_batches.py [--threads 1 2] [--json out.json]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from measure import publish

from showtell.encoders.base import BackboneEncoder
from showtell.encoders.efficientnet_lite import EfficientNetLite
from showtell.encoders.torchvision import TorchvisionEncoder


def milliseconds(encoder: BackboneEncoder, images: torch.Tensor, rounds: int) -> dict[str, float]:
    """Per photo, the two ways in turn: encoder.extract sees the whole batch, encoder.trunk splits it."""
    took: dict[str, list[float]] = {"at_once": [], "split": []}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, call in (("at_once", encoder.extract), ("split", encoder.trunk)):
                start = time.perf_counter()
                call(images)
                took[name].append(1000 * (time.perf_counter() - start) / len(images))
    median = {name: round(statistics.median(values), 2) for name, values in took.items()}
    return {**median, "ratio": round(median["at_once"] / median["split"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    encoders = {"efficientnet-lite0": EfficientNetLite().eval(), "resnet50": TorchvisionEncoder("resnet50").eval()}
    images = torch.rand(32, 3, 224, 224)
    result: dict[str, object] = {"what": "ms a photo, 32 photos of 224 x 224, float32, random weights"}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, encoder in encoders.items():
            result[f"{name}, {threads} threads"] = milliseconds(encoder, images, options.rounds)
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    result["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
    publish(result, options.json)


if __name__ == "__main__":
    main()
