"""How long scores take: against pycocoevalcap from text to numbers, and the self-critical reward against plain Python.

python benchmarks/metrics.py [--repeats 5] [--json benchmarks/results/metrics_cpu.json]

The captions are Flickr8k's where ../shared has them, else sentences from a small list of words, and recombinations of
them: a walk from pair of words to next word, now and then a word from anywhere. Both sides see the same captions in
the same run, by turns; from text to numbers every repeat is a process of its own, so no cache is warm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measure import publish

from showtell import __version__
from showtell.metrics import CiderD, DocumentFrequencies, score_captions

ROOT = Path(__file__).parent.parent
FLICKR = ROOT.parent / "shared" / "flickr8k" / "dataset_flickr8k.json"
PHOTOS, COCO_PHOTOS, REFERENCES = 5000, 40_504, 5
END = 0  # the id that ends a caption; words count from 1

Tokens = Sequence[int]
Words = list[str]


class PlainCiderD:
    """CIDEr-D as self-critical training usually has it: tuples, dicts and loops; the references may be prepared."""

    def __init__(self, frequencies: dict[tuple[int, ...], int], images: int, sigma: float = 6.0) -> None:
        self.frequencies = frequencies
        self.log_images = math.log(images)
        self.below = 2 * sigma**2

    def vector(self, tokens: Tokens) -> tuple[list[dict[tuple[int, ...], float]], list[float], int]:
        frequencies, log_images, log = self.frequencies, self.log_images, math.log
        weights: list[dict[tuple[int, ...], float]] = [{}, {}, {}, {}]
        norms = [0.0] * 4
        for ngram, count in count_ngrams(tokens).items():
            n = len(ngram) - 1
            weight = count * (log_images - log(max(1, frequencies.get(ngram, 0))))
            weights[n][ngram] = weight
            norms[n] += weight * weight
        return weights, [math.sqrt(norm) for norm in norms], max(0, len(tokens) - 1)

    def prepare(self, references: Sequence[Sequence[Tokens]]) -> list[list[Any]]:
        return [[self.vector(tokens) for tokens in captions] for captions in references]

    def __call__(self, candidates: Sequence[Tokens], prepared: list[list[Any]]) -> list[float]:
        each, scores = len(candidates) // len(prepared), []
        for row, candidate in enumerate(candidates):
            mine, my_norms, my_length = self.vector(candidate)
            total = 0.0
            for theirs, norms, length in prepared[row // each]:
                similarity = 0.0
                for n in range(4):
                    other, value = theirs[n], 0.0
                    for ngram, weight in mine[n].items():
                        if ngram in other:
                            reference = other[ngram]
                            value += min(weight, reference) * reference
                    if my_norms[n] and norms[n]:
                        value /= my_norms[n] * norms[n]
                    similarity += value
                total += similarity * math.exp(-((my_length - length) ** 2) / self.below)
            scores.append(10 * total / 4 / len(prepared[row // each]))
        return scores


def count_ngrams(tokens: Tokens) -> dict[tuple[int, ...], int]:
    counts: dict[tuple[int, ...], int] = {}
    for n in range(1, 5):
        for i in range(len(tokens) - n + 1):
            ngram = tuple(tokens[i : i + n])
            counts[ngram] = counts.get(ngram, 0) + 1
    return counts


def plain_frequencies(references: Sequence[Sequence[Tokens]]) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for captions in references:
        for ngram in set().union(*map(count_ngrams, captions)):
            found[ngram] = found.get(ngram, 0) + 1
    return found


class Writer:
    """Captions that sound like those it was given."""

    def __init__(self, captions: Sequence[Words], seed: int) -> None:
        self.random = random.Random(seed)
        self.words = [word for caption in captions for word in caption]
        self.after: dict[tuple[str, str], Words] = defaultdict(list)
        for caption in captions:
            for a, b in pairwise(pairwise(["", "", *caption, ""])):
                self.after[a].append(b[1])

    def write(self, about: Sequence[Words] = (), *, own: float = 0.6, strange: float = 0.0) -> Words:
        """A new caption; `about`: take the next word from these as often as `own` says."""
        near: dict[str, Words] = defaultdict(list)
        for caption in about:
            for a, b in pairwise(["", *caption, ""]):
                near[a].append(b)
        pick, caption = self.random.choice, ["", ""]
        while len(caption) < 42:
            before, last = caption[-2:]
            mine, all_ = near.get(last), self.after.get((before, last))
            word = pick(mine) if mine and (not all_ or self.random.random() < own) else pick(all_ or [""])
            if not word:
                break
            caption.append(word)
        return [pick(self.words) if self.random.random() < strange else word for word in caption[2:]]


def known_captions() -> list[list[str]]:
    """Captions by photo: Flickr8k's, or made from a small list of words whose frequencies fall as 1 / rank."""
    if FLICKR.is_file():
        photos = json.loads(FLICKR.read_text(encoding="utf-8"))["images"]
        return [[sentence["raw"] for sentence in photo["sentences"]] for photo in photos]
    rng = random.Random(0)
    syllables = ["ba", "do", "ke", "li", "mu", "na", "po", "ra", "si", "te", "vo", "zu"]
    words = ["a", "the", "in", "on", "and", "with", "of"]
    words += ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(8000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return [[" ".join(rng.choices(words, weights, k=rng.randint(6, 16))) for _ in range(5)] for _ in range(7000)]


def make_texts(path: Path) -> dict[str, Any]:
    """5,000 photos with 5 references and a candidate, as text, into a file."""
    photos = known_captions()
    words = [[caption.split() for caption in captions] for captions in photos]
    writer = Writer([caption for captions in words for caption in captions], seed=1)
    references = [captions[:REFERENCES] for captions in photos[:PHOTOS]]
    candidates = [" ".join(writer.write(captions)) for captions in words[:PHOTOS]]
    path.write_text(json.dumps({"candidates": candidates, "references": references}), encoding="utf-8")
    everything = [*candidates, *(caption for captions in references for caption in captions)]
    return {
        "photos": len(references),
        "references_a_photo": REFERENCES,
        "captions": len(everything),
        "distinct_captions": round(len(set(everything)) / len(everything), 4),
        "source": "Flickr8k and recombinations" if FLICKR.is_file() else "made up from a list of words",
    }


def make_ids(path: Path) -> dict[str, Any]:
    """40,504 photos with 5 references, and candidates for the first 5,000, as ids with an end token, into a file."""
    known = [caption.lower().split() for captions in known_captions() for caption in captions]
    writer = Writer(known, seed=2)
    words = [[writer.write(strange=0.13) for _ in range(REFERENCES)] for _ in range(COCO_PHOTOS)]
    candidates = [writer.write(captions) for captions in words[:PHOTOS]]
    ids: dict[str, int] = {}

    def number(caption: Words) -> list[int]:
        return [ids.setdefault(word, len(ids) + 1) for word in caption] + [END]

    references = [[number(caption) for caption in captions] for captions in words]
    path.write_text(json.dumps({"references": references, "candidates": [number(c) for c in candidates]}))
    distinct = {tuple(tokens) for captions in references for tokens in captions}
    return {
        "photos_counted": len(references),
        "references_a_photo": REFERENCES,
        "distinct_references": round(len(distinct) / len(references) / REFERENCES, 4),
        "words": len(ids),
        "mean_candidate_length": round(statistics.mean(len(c) + 1 for c in candidates), 2),
    }


def official(data: dict[str, Any]) -> dict[str, Any]:
    """One run of pycocoevalcap, as its own evaluation puts the parts together."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    start = time.perf_counter()
    tokenizer = PTBTokenizer()
    references = tokenizer.tokenize(
        {i: [{"caption": text} for text in captions] for i, captions in enumerate(data["references"])}
    )
    candidates = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(data["candidates"])})
    split = time.perf_counter()
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, _ = Rouge().compute_score(references, candidates)
    cider, _ = Cider().compute_score(references, candidates)
    end = time.perf_counter()
    scores = {**{f"BLEU-{n}": value for n, value in enumerate(bleu, 1)}, "ROUGE-L": rouge, "CIDEr-D": cider}
    return {"seconds": end - start, "tokenise": split - start, "scores": {k: float(v) for k, v in scores.items()}}


def ours(data: dict[str, Any]) -> dict[str, Any]:
    """One run of showtell; the tokeniser's share is timed afterwards, when its caches are warm from the run itself."""
    metrics = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
    start = time.perf_counter()
    scores = score_captions(data["candidates"], data["references"], metrics=metrics)
    end = time.perf_counter()
    return {"seconds": end - start, "scores": dict(scores.corpus)}


def ours_tokeniser(data: dict[str, Any]) -> dict[str, Any]:
    """Only the tokeniser, in a process of its own."""
    from showtell.metrics import ptb_tokenize

    texts = [*data["candidates"], *(text for captions in data["references"] for text in captions)]
    start = time.perf_counter()
    for text in texts:
        ptb_tokenize(text)
    return {"seconds": time.perf_counter() - start}


def reward(data: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The self-critical reward: 5,000 candidates, and a training step's 60, both sides by turns."""
    counted, candidates = data["references"], data["candidates"]
    references = counted[:PHOTOS]
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name].append(time.perf_counter() - start)
        return result

    frequencies = timed("count_frequencies_ours", lambda: DocumentFrequencies.of(counted))
    plain_counts = timed("count_frequencies_plain", lambda: plain_frequencies(counted))
    fast, plain = CiderD(frequencies), PlainCiderD(plain_counts, len(counted))
    timed("first_call_ours", lambda: fast(candidates[:1], references[:1]))
    # A step: six captions of each of ten photos, as a model that samples gives them.
    step = [candidates[i] for i in range(10) for _ in range(6)]
    different = 0.0
    for _ in range(repeats):
        slow_ready = timed("prepare_plain", lambda: plain.prepare(references))
        ready = timed("prepare_ours", lambda: fast.prepare(references))
        expected = timed("score_plain", lambda ready=slow_ready: plain(candidates, ready))
        found = timed("score_ours", lambda ready=ready: fast(candidates, ready))
        different = max(different, float(np.abs(found - expected).max()))
        small, small_plain = fast.prepare(references[:10]), plain.prepare(references[:10])
        for _ in range(3):
            timed("step_plain", lambda ready=small_plain: plain(step, ready))
            timed("step_ours", lambda ready=small: fast(step, ready))
            timed("step_unprepared_plain", lambda: plain(step, plain.prepare(references[:10])))
            timed("step_unprepared_ours", lambda: fast(step, references[:10]))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frequencies"
        start = time.perf_counter()
        frequencies.save(path)
        saving = time.perf_counter() - start
        start = time.perf_counter()
        DocumentFrequencies.load(path)
        loading, size = time.perf_counter() - start, path.stat().st_size
    both = [
        (p + s) / (q + t)
        for p, s, q, t in zip(
            seconds["prepare_plain"],
            seconds["score_plain"],
            seconds["prepare_ours"],
            seconds["score_ours"],
            strict=True,
        )
    ]
    return {
        "candidates": len(candidates),
        "repeats": repeats,
        "mean_score": round(float(found.mean()), 4),
        "largest_difference": different,
        "times_faster": round(middle["score_plain"] / middle["score_ours"], 1),
        "times_faster_lowest_pair": round(
            min(a / b for a, b in zip(seconds["score_plain"], seconds["score_ours"], strict=True)), 1
        ),
        "times_faster_preparing_both": round(statistics.median(both), 1),
        "times_faster_than_plain_that_prepares_each_call": round(
            (middle["prepare_plain"] + middle["score_plain"]) / middle["score_ours"], 1
        ),
        "times_faster_step_of_60": round(middle["step_plain"] / middle["step_ours"], 1),
        "times_faster_step_of_60_preparing_both": round(
            middle["step_unprepared_plain"] / middle["step_unprepared_ours"], 1
        ),
        "median_ms": {name: round(1000 * value, 2) for name, value in sorted(middle.items())},
        "frequencies": {
            "ngrams": len(plain_counts),
            "save_s": round(saving, 3),
            "load_s": round(loading, 3),
            "file_mb": round(size / 1e6, 1),
            "plain_pickle_mb": round(len(pickle.dumps(plain_counts)) / 1e6, 1),
        },
    }


def memory(data: dict[str, Any]) -> dict[str, Any]:
    """The peak of scoring 40,504 photos with 5 references, from ids made words, and before."""
    references = [[" ".join(map(str, tokens)) for tokens in captions] for captions in data["references"]]
    data.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    score_captions([captions[-1] for captions in references], references)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "photos": len(references),
        "score_captions_s": round(seconds, 2),
        "before_mb": round(before / 1024),
        "peak_mb": round(peak / 1024),
    }


def apart(what: str, path: Path, *options: str) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--only", what, "--data", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def end_to_end(path: Path, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "official": [], "ours_tokeniser": []}
    for number in range(repeats):
        for name in sorted(runs, reverse=number % 2 == 1):
            runs[name].append(apart(name, path))
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    mine, theirs = runs["ours"][0]["scores"], runs["official"][0]["scores"]
    return {
        "times_faster": round(middle["official"] / middle["ours"], 1),
        "times_faster_lowest_pair": round(
            min(a / b for a, b in zip(seconds["official"], seconds["ours"], strict=True)), 1
        ),
        "pycocoevalcap_s": [round(value, 2) for value in seconds["official"]],
        "showtell_s": [round(value, 2) for value in seconds["ours"]],
        "pycocoevalcap_tokeniser_s": [round(run["tokenise"], 2) for run in runs["official"]],
        "showtell_tokeniser_s": [round(value, 2) for value in seconds["ours_tokeniser"]],
        "largest_difference": max(abs(mine[metric] - theirs[metric]) for metric in mine),
        "scores": {metric: round(value, 6) for metric, value in mine.items()},
    }


def cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        data = json.loads(options.data.read_text())
        sides = {"ours": ours, "official": official, "ours_tokeniser": ours_tokeniser, "memory": memory}
        found = reward(data, options.repeats) if options.only == "reward" else sides[options.only](data)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        texts, ids = Path(folder) / "texts.json", Path(folder) / "ids.json"
        about_texts, about_ids = make_texts(texts), make_ids(ids)
        result = {
            "what": "caption scores on a CPU; times_faster is of medians",
            "text_to_scores": {**about_texts, **end_to_end(texts, options.repeats)},
            "self_critical_reward": {**about_ids, **apart("reward", ids, "--repeats", str(3 * options.repeats))},
            "memory": apart("memory", ids),
            "machine": f"{cpu()}, {platform.machine()}, {os.cpu_count()} cores",
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
            ).stdout.strip(),
            "versions": {
                "showtell": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
                "pycocoevalcap": version("pycocoevalcap"),
                "java": subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.splitlines()[0],
            },
        }
    publish(result, options.json)


if __name__ == "__main__":
    main()
