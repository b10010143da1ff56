"""What exporting costs and gains: bytes, milliseconds a photo, and CIDEr-D of captions, in one run.

    pip install -e ".[onnx]"
    python benchmarks/export.py DATA [--photos 1000] [--model FOLDER] [--out benchmarks/results/export_cpu.json]

DATA is a dataset with a val split. Each photo is captioned by itself, from pixels at hand, by showtell, by ONNX and by
ONNX with 8-bit linear layers; the three take turns, photo by photo, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import time
from pathlib import Path

import torch
from measure import machine, publish

from showtell import Captioner, __version__, read_dataset
from showtell.exporting import export, load_onnx
from showtell.images import load_images
from showtell.metrics import score_captions
from showtell.storage import scratch_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", help="a captioner's folder; by default the bundled one")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export_cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    own = Captioner.from_pretrained(options.model) if options.model else Captioner.default()
    records = list(read_dataset(options.data).split("val"))[: options.photos]
    with scratch_folder() as folder:
        sizes = {}
        for name, int8 in (("onnx", False), ("onnx, int8", True)):
            export(own, folder / name, int8=int8)
            sizes[name] = sum(file.stat().st_size for file in (folder / name).glob("*.onnx"))
        systems = {
            "showtell": own.for_inference(),
            "onnx": load_onnx(folder / "onnx"),
            "onnx, int8": load_onnx(folder / "onnx, int8"),
        }
    sizes["showtell"] = sum(t.numel() * t.element_size() for t in own.save_pieces()["tensors"].values())
    found = {}
    for search in ("greedy", "beam:3,length_penalty=0.7"):
        said: dict[str, list[str]] = {name: [] for name in systems}
        spent: dict[str, list[float]] = {name: [] for name in systems}
        for record in records:
            features = {}
            pixels = load_images([record.image], own.encoder.image_spec)
            for name, system in systems.items():
                begun = time.perf_counter()
                features[name] = system.encode_pixels(pixels)
                said[name].append(system.caption(features[name], search=search)[0].text)
                spent[name].append(time.perf_counter() - begun)
        references = [list(record.captions) for record in records]
        scores = {
            name: score_captions(texts, references, metrics=("CIDEr-D",)).corpus["CIDEr-D"]
            for name, texts in said.items()
        }
        found[search] = {
            name: {
                "milliseconds": round(1000 * statistics.median(spent[name]), 2),
                "times_as_fast": round(statistics.median(spent["showtell"]) / statistics.median(spent[name]), 2),
                "cider_d": round(scores[name], 4),
                "same_captions": sum(a == b for a, b in zip(said[name], said["showtell"], strict=True)) / len(records),
            }
            for name in systems
        }
    result = {
        "what": "photos one by one from pixels at hand, taking turns; bytes of the weights",
        "machine": machine(torch.device("cpu")),
        "threads": options.threads,
        "torch": torch.__version__,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "showtell": __version__,
        "photos": len(records),
        "bytes": sizes,
        "searches": found,
    }
    publish(result, options.out)


if __name__ == "__main__":
    main()
