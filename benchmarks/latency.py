"""How long a photo takes: batch 1, greedy, from the file to the sentence; and what importing showtell costs.

python benchmarks/latency.py [PHOTO ...] [--threads 2] [--json out.json]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import publish

from showtell import Captioner, __version__

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.jpg"))
IMPORT = "import torch, torchvision, time; t = time.perf_counter(); import showtell; print(time.perf_counter() - t)"


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles([1000 * s for s in seconds], n=4)
    return {"lower_quartile_ms": round(low, 1), "median_ms": round(middle, 1), "upper_quartile_ms": round(high, 1)}


def timed(captioner: Captioner, photos: list[str], search: str, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        for photo in photos:
            start = time.perf_counter()
            captioner.caption(photo, search=search)
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", default=[str(p) for p in EXAMPLES])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    captioner = Captioner.default()
    loading = time.perf_counter() - start
    timed(captioner, options.photos, "greedy", 2)
    rounds = max(1, 100 // len(options.photos))
    imports = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(7)]
    result = {
        "what": "Captioner.default(), batch 1, from file to sentence",
        "greedy": quartiles(timed(captioner, options.photos, "greedy", rounds)),
        "beam_3": quartiles(timed(captioner, options.photos, "beam:3", rounds)),
        "load_ms": round(1000 * loading, 1),
        "import_beyond_torch_and_torchvision": quartiles(imports),
        "photos": len(options.photos),
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "versions": {"showtell": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    publish(result, options.json)


if __name__ == "__main__":
    main()
