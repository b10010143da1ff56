"""BLEU-4 and CIDEr of predictions by the official scorer (pycocoevalcap, needs Java): an independent check.

    pip install "showtell[bench]"
    showtell caption --model M PHOTOS --search beam:3,length_penalty=0.7 --output predictions.jsonl
    python benchmarks/official_scores.py predictions.jsonl --data DATA [--split val]

DATA is anything `showtell data check` reads. Every photo of the split must have a prediction, unless --partial.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from showtell import read_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--partial", action="store_true", help="score only the photos that have a prediction")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.predictions.read_text(encoding="utf-8").splitlines()]
    said = {Path(row["image"]).name: row["caption"] for row in rows if "caption" in row}
    records = read_dataset(options.data).split(options.split)
    if options.partial:
        records = tuple(record for record in records if Path(record.image).name in said)
    names = [Path(record.image).name for record in records]
    missing = [name for name in names if name not in said]
    if missing:
        sys.exit(f"{len(missing)} photos of the split have no prediction, {missing[0]} for one")
    candidates = {name: [{"caption": said[name]}] for name in names}
    references = {n: [{"caption": c} for c in r.captions] for n, r in zip(names, records, strict=True)}
    with contextlib.redirect_stdout(sys.stderr):
        tokenizer = PTBTokenizer()
        words, wanted = tokenizer.tokenize(candidates), tokenizer.tokenize(references)
        bleu, _ = Bleu(4).compute_score(wanted, words)
        cider, _ = Cider().compute_score(wanted, words)
    print(json.dumps({"photos": len(names), "BLEU-4": round(bleu[3], 4), "CIDEr": round(cider, 4)}))


if __name__ == "__main__":
    main()
