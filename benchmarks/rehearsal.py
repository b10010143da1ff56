"""A rehearsal at COCO's size: 120,000 records with random features, from the caption file to the scores of an epoch.

    python benchmarks/rehearsal.py [--records 120000] [--threads 2] [--device cuda] [--json out.json]

A temporary folder gets a caption file of the shape of Karpathy's dataset_coco.json (5 captions a photo, some 10,000
words, as frequent as Zipf's law says) and as many photos of 32 pixels, 64 files under many names. The encoder is a
ShuffleNet of random weights at that size: 2048 random features a photo, as many as a ResNet-50's. showtell's own
command does the rest, each time in a process of its own:

- fill: `showtell train`, stopped after its first step: every photo goes through the encoder;
- run: the same command again, features at hand: start-up, an epoch of 100 steps over all photos, one caption each, and
  the evaluation of the 5,000 validation photos;
- pieces: what the start-up consists of, one after the other, the memory after each.

Start-up is from the start of the process to the end of the first step. Needs Linux, 2 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, publish
from PIL import Image

from showtell import Batches, Captioner, FeatureCache, Record, Vocabulary, __version__, read_dataset
from showtell.data import CachedInputs
from showtell.metrics import DocumentFrequencies, scored_words

COCO = 120_000
SHARES = {"train": 83_000, "restval": 30_000, "val": 5_000, "test": 2_000}  # of 120,000
WORDS, CAPTIONS, SIZE, FILES = 10_000, 5, 32, 64
STEPS, ACCUMULATE, VAL = 100, 10, 5_000
STARTED = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


# --- the data ---------------------------------------------------------------------------------------------------------


def words() -> list[str]:
    """10,000 different made-up words, the short ones first."""
    sounds = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    short = [first + last for first in sounds for last in sounds]
    return [*short, *(word + last for last in "nrst" for word in short)][:WORDS]


def sentences(count: int, rng: np.random.Generator) -> list[list[str]]:
    """Sentences of 8 to 13 words, the word of rank r as likely as 1 / (r + 2)."""
    known = words()
    odds = np.cumsum(1 / (np.arange(len(known)) + 3))
    lengths = rng.integers(8, 14, count)
    drawn = np.searchsorted(odds, rng.random(int(lengths.sum())) * odds[-1]).tolist()
    ends = np.cumsum(lengths).tolist()
    return [[known[i] for i in drawn[end - n : end]] for end, n in zip(ends, lengths.tolist(), strict=True)]


def make_data(folder: Path, records: int) -> int:
    """The caption file and the photos; the result is how many photos there are to train on."""
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(FILES)]
    folder.mkdir(parents=True)
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file)
    for year in ("train2014", "val2014"):
        (folder / "images" / year).mkdir(parents=True)
    bounds = np.cumsum([round(share * records / COCO) for share in SHARES.values()])
    said = sentences(records * CAPTIONS, rng)
    with (folder / "dataset_coco.json").open("w", encoding="utf-8") as out:
        for number in range(records):
            split = list(SHARES)[min(int(np.searchsorted(bounds, number, side="right")), len(SHARES) - 1)]
            year = "train2014" if split == "train" else "val2014"
            name = f"COCO_{year}_{number:012d}.jpg"
            os.link(files[number % FILES], folder / "images" / year / name)
            ids = range(number * CAPTIONS, (number + 1) * CAPTIONS)
            texts = [
                {"tokens": said[i], "raw": " ".join(said[i]).capitalize() + ".", "imgid": number, "sentid": i}
                for i in ids
            ]
            entry = {
                "filepath": year,
                "sentids": list(ids),
                "filename": name,
                "imgid": number,
                "split": split,
                "sentences": texts,
                "cocoid": number,
            }
            out.write(('{"images": [' if number == 0 else ", ") + json.dumps(entry))
        out.write('], "dataset": "coco"}')
    return int(bounds[1])


# --- the command ------------------------------------------------------------------------------------------------------


class Watched:
    """A command in a process of its own: when it said what, and how much memory it had needed by then."""

    def __init__(self, command: list[str]) -> None:
        self._began = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.said: list[tuple[float, float, str]] = []
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self._peak = 0.0

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append((self.seconds, self.peak_mb(), line))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def peak_mb(self) -> float:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii").splitlines()
            self._peak = next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):  # it has ended
            pass
        return self._peak

    def until(self, happened: Callable[[], bool]) -> dict[str, float]:
        """Wait for something; the seconds since the command began, and its peak memory."""
        while not happened():
            if self._process.poll() is not None and not happened():
                sys.exit("".join(["the command ended too early:\n", *(line for *_, line in self.said)]))
            time.sleep(0.02)
        return mark(self.seconds, self.peak_mb())

    def heard(self, pattern: str) -> dict[str, float]:
        """When it said a line."""
        return next(mark(at, peak) for at, peak, line in self.said if re.match(pattern, line))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._listener.join()

    def end(self) -> dict[str, float]:
        """Wait for the end."""
        while self._process.poll() is None:
            self.peak_mb()
            time.sleep(0.02)
        self._listener.join()
        if self._process.returncode:
            sys.exit("".join(["the command failed:\n", *(line for *_, line in self.said)]))
        return mark(self.seconds, self._peak)


def mark(seconds: float, peak: float) -> dict[str, float]:
    return {"at_s": round(seconds, 2), "peak_mb": round(peak)}


def rows(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl so far."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def command(data: Path, run: Path, train: int, options: argparse.Namespace) -> list[str]:
    settings = {
        "pretrained": False,
        "image_size": SIZE,
        "embed_dim": 128,
        "hidden_dim": 128,
        "photos": plan(train)[0],
        "accumulate": ACCUMULATE,
        "captions": 1,
        "epochs": 1,
        "min_steps": 0,
        "val_photos": VAL,
        "log_every_steps": 1,
        "weights_dtype": "float32",
    }
    told = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    where = ["--threads", str(options.threads), "--device", options.device]
    whole = ["--data", str(data), "--output", str(run), "--init", "none", "--encoder", options.encoder]
    return [sys.executable, "-m", "showtell", "train", *whole, *where, *told]


def rehearse(data: Path, run: Path, train: int, options: argparse.Namespace) -> dict[str, Any]:
    line = command(data, run, train, options)
    fill = Watched(line)
    filled = fill.until(lambda: bool(rows(run)))
    fill.stop()
    say(f"filled: {filled}")
    (run / "metrics.jsonl").unlink()
    second = Watched(line)
    first_step = second.until(lambda: bool(rows(run)))
    say(f"first step: {first_step}")
    last = plan(train)[1]
    steps = second.until(lambda: any(row["step"] == last for row in rows(run)))
    say(f"steps: {steps}")
    evaluated = second.until(lambda: any(row["kind"] == "evaluation" for row in rows(run)))
    end = second.end()
    say(f"end: {end}")
    features = sum(file.stat().st_size for file in (run / "features").iterdir())
    filling = filled["at_s"] - first_step["at_s"]
    photos = json.loads((run / "features" / "meta.json").read_bytes())["rows"]
    return {
        "fill": {
            "seconds": round(filling, 1),
            "photos": photos,
            "photos_per_s": round(photos / filling, 1) if filling > 0 else None,
            "features_mb": round(features / 1e6),
            "peak_mb": filled["peak_mb"],
        },
        "run": {
            "data read": second.heard(r"[\d,]+ photos?, [\d,]+ caption"),
            "vocabulary counted": second.heard(r"vocabulary: [\d,]+ entries"),
            "first step done": first_step,
            f"step {last} done": steps,
            "evaluated": evaluated,
            "ended": end,
        },
        "start_up_s": first_step["at_s"],
        "steps_s": round(steps["at_s"] - first_step["at_s"], 2),
        "evaluation_s": round(evaluated["at_s"] - steps["at_s"], 2),
    }


def plan(train: int) -> tuple[int, int]:
    """Photos a batch, so that an epoch has 100 steps of 10 batches; and how many steps it has with few photos."""
    photos = math.ceil(train / (STEPS * ACCUMULATE))
    return photos, math.ceil(math.ceil(train / photos) / ACCUMULATE)


# --- the pieces of the start-up ---------------------------------------------------------------------------------------


def pieces(data: Path, run: Path, threads: int) -> dict[str, Any]:
    """Seconds of each piece in this process, and the most memory so far."""
    torch.set_num_threads(threads)
    found: dict[str, Any] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        before = time.perf_counter()
        result = call()
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        memory = {key: int(line.split()[1]) for line in lines for key in ("VmRSS", "VmHWM") if line.startswith(key)}
        found[name] = {
            "seconds": round(time.perf_counter() - before, 2),
            "mb": round(memory["VmRSS"] / 1000),
            "peak_mb": round(memory["VmHWM"] / 1000),
        }
        return result

    dataset = timed("reading the caption file", lambda: read_dataset(data))
    train: list[Record] = list(dataset.split("train"))
    records = [*train, *dataset.split("val")]
    timed("fingerprint of the data", dataset.fingerprint)
    captions = [caption for record in train for caption in record.captions]
    vocabulary = timed("building the vocabulary", lambda: Vocabulary.build(captions))
    timed("counting unknown words", lambda: vocabulary.unknown(captions))
    encoder = timed("the encoder", lambda: Captioner.from_pretrained(run)).encoder
    cache = timed("opening the cache", lambda: FeatureCache.build(run / "features", encoder, records, say=refuse))
    batches = timed(
        "captions to batches",
        lambda: Batches(train, vocabulary, CachedInputs(cache, range(len(train))), trunk=True),
    )
    timed("the first batch", lambda: batches.batch(0))
    split = timed(
        "words of the validation captions",
        lambda: [[scored_words(caption) for caption in record.captions] for record in records[len(train) :]],
    )
    timed("their document frequencies", lambda: DocumentFrequencies.of(split))
    references = timed("references for a reward", lambda: batches.references(range(len(train))))
    timed("document frequencies for a reward", lambda: DocumentFrequencies.of(references))
    return found


def refuse(text: str) -> None:
    """The cache is to be there already."""
    sys.exit(f"the cache isn't as the run left it: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=COCO)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the records: does it all work?")
    parser.add_argument("--encoder", default="torchvision:shufflenet_v2_x2_0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pieces", nargs=2, type=Path, metavar=("DATA", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.pieces:
        print(json.dumps(pieces(*options.pieces, options.threads)))
        return
    records = COCO // 100 if options.quick else options.records
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch) / "coco", Path(scratch) / "run"
        train = make_data(data, records)
        say(f"{records:,} records")
        found = rehearse(data, run, train, options)
        again = [sys.executable, __file__, "--pieces", str(data), str(run), "--threads", str(options.threads)]
        found["pieces"] = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
        say("pieces")
        caption_file_mb = round((data / "dataset_coco.json").stat().st_size / 1e6)
    result = {
        "what": __doc__.splitlines()[0],
        "records": records,
        "captions": records * CAPTIONS,
        "caption_file_mb": caption_file_mb,
        "encoder": options.encoder,
        **found,
        "machine": machine(torch.device(options.device)),
        "versions": {"showtell": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "took_s": round(time.perf_counter() - STARTED),
    }
    publish(result, options.json)


if __name__ == "__main__":
    main()
