"""Do batches and fast paths say what the plain path says, one photo at a time? And what does half precision cost?

    python benchmarks/agreement.py DATA [--photos 1000] [--model FOLDER ...] [--json out.json]

DATA is a dataset with a val split; `--model` names captioners, by default the bundled one. The plain path takes one
photo at a time through the encoder as it was saved, torch's own linear layers and torch's own topk. Photos for which a
path says something else are listed with how much the two captions' scores differ by the plain model: beyond 1e-4 it
counts as wrong, and so do more than 3 such photos a path. Exits with 1 then, or where bfloat16 changes CIDEr-D by more
than 0.003.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import machine, publish

from showtell import Caption, Captioner, __version__, read_dataset, score_captions
from showtell.decoders import parts
from showtell.search import frontier

CLOSE, LISTED, CIDER = 1e-4, 3, 0.003
SEARCHES = ("greedy", "beam:3,length_penalty=0.7", "beam:5", "diverse:4,groups=2", "sample:2,seed=1")
Say = Callable[[str], list[list[Caption]]]


@contextmanager
def plain() -> Iterator[None]:
    """Without the fast paths that are always on."""
    with patch.object(parts, "_LARGE", sys.maxsize), patch.object(frontier, "_PIECE", sys.maxsize):
        yield


def paths_of(captioner: Captioner, photos: list[Path]) -> dict[str, Say]:
    fast, compiled = captioner.for_inference(), captioner.for_inference()
    compiled.encoder.compile()

    def rows(search: str) -> list[list[Caption]]:
        found = captioner.caption_iter(photos, search=search, batch_size=16)
        return [list(row.caption.candidates) for row in found if row.caption is not None]

    return {
        "one by one": lambda s: [captioner.generate(p, search=s, positions=[n])[0] for n, p in enumerate(photos)],
        "batches of 32": lambda s: captioner.generate(photos, search=s, batch_size=32),
        "caption_iter, batches of 16": rows,
        "for_inference, batches of 32": lambda s: fast.generate(photos, search=s, batch_size=32),
        "for_inference and compiled, batches of 20": lambda s: compiled.generate(photos, search=s, batch_size=20),
    }


def difference(captioner: Captioner, photo: Path, ours: list[Caption], expected: list[Caption]) -> float:
    """How far the first captions in which two n-best lists differ are apart.

    Their scores, or by the plain model the words where they part: a search that takes one of the two goes on with it.
    """
    mine, wanted = next((a, b) for a, b in zip(ours, expected, strict=True) if a.tokens != b.tokens)
    a, b = captioner.score(photo, [mine.tokens, wanted.tokens])
    parted = [
        abs(p - q)
        for p, q, x, y in zip(a.token_log_probs, b.token_log_probs, a.tokens, b.tokens, strict=False)
        if x != y
    ]
    return min([abs(mine.score - wanted.score), *parted[:1]])


def compared(captioner: Captioner, photos: list[Path], search: str) -> dict[str, Any]:
    ways = paths_of(captioner, photos)
    with plain():
        expected = ways["one by one"](search)
    result: dict[str, Any] = {}
    for name, say in ways.items():
        began = time.perf_counter()
        found = say(search)
        took = time.perf_counter() - began
        assert len(found) == len(expected)
        other: list[dict[str, Any]] = []
        for photo, ours, wanted in zip(photos, found, expected, strict=True):
            if [c.tokens for c in ours] != [c.tokens for c in wanted]:
                with plain():
                    gap = difference(captioner, photo, ours, wanted)
                best = ours[0].tokens != wanted[0].tokens
                other.append({"photo": photo.name, "gap": float(f"{gap:.2g}"), "best caption differs": best})
        pairs = [pair for lists in zip(found, expected, strict=True) for pair in zip(*lists, strict=True)]
        drift = max([abs(a.log_prob - b.log_prob) for a, b in pairs if a.tokens == b.tokens], default=0.0)
        result[name] = {
            "equal": len(photos) - len(other),
            "largest_log_prob_difference": float(f"{drift:.2g}"),
            "differ": other,
            "passed": len(other) <= LISTED and all(each["gap"] < CLOSE for each in other),
            "photos_per_s": round(len(photos) / took, 1),
        }
        print(f"  {search}; {name}: {result[name]}", file=sys.stderr, flush=True)
    return result


def halves(captioner: Captioner, photos: list[Path], references: list[list[str]], search: str) -> dict[str, Any]:
    """CIDEr-D in float32, and how much half precision of encoder and decoder changes it."""

    def score(one: Captioner) -> float:
        texts = [caption.text for caption in one.caption(photos, search=search)]
        return score_captions(texts, references, metrics=["CIDEr-D"]).corpus["CIDEr-D"]

    full = score(captioner)
    change = {
        str(dtype).removeprefix("torch."): round(score(captioner.for_inference().to(dtype)) - full, 4)
        for dtype in (torch.bfloat16, torch.float16)
    }
    return {"float32": round(full, 4), "change": change, "passed": abs(change["bfloat16"]) <= CIDER}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--model", nargs="+", default=["bundled"])
    parser.add_argument("--searches", nargs="+", default=SEARCHES)
    parser.add_argument("--half-only", action="store_true", help="only what half precision costs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = read_dataset(options.data).split("val")[: options.photos]
    photos, references = [Path(record.image) for record in records], [list(record.captions) for record in records]
    result: dict[str, Any] = {
        "showtell": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(torch.device("cpu")),
        "photos": len(photos),
        "models": {},
    }
    every: list[dict[str, Any]] = []
    for name in options.model:
        captioner = Captioner.default() if name == "bundled" else Captioner.from_pretrained(name)
        print(f"{name}: {type(captioner.decoder).__name__}", file=sys.stderr)
        chosen = [] if options.half_only else options.searches
        found = {search: compared(captioner, photos, search) for search in chosen}
        cost = {search: halves(captioner, photos, references, search) for search in options.searches[:2]}
        result["models"][Path(name).name] = {
            "decoder": type(captioner.decoder).__name__,
            "paths": found,
            "half precision, CIDEr-D": cost,
        }
        print(f"  half precision: {cost}", file=sys.stderr)
        every += [way for ways in found.values() for way in ways.values()] + list(cost.values())
    result["passed"] = all(each["passed"] for each in every)
    publish(result, options.json, 1)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
