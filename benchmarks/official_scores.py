"""The same captions scored by showtell and by pycocoevalcap, the official tools (needs Java), side by side.

    pip install "showtell[bench]"
    showtell evaluate --data DATA --split val --output result.json
    python benchmarks/official_scores.py result.json [--json out.json]

or with the captions of any tool, for the photos of DATA's split (--partial: of those that have a caption):

    python benchmarks/official_scores.py predictions.jsonl --data DATA [--split val] [--partial]

Prints every metric twice, with 6 digits, and the largest difference on a single photo. Exits with 1 if a number for
all photos together differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from showtell import Evaluation, ShowtellError, __version__, score_predictions
from showtell.evaluation.matching import match_predictions
from showtell.evaluation.predictions import read_predictions
from showtell.evaluation.references import read_references
from showtell.evaluation.result import FORMAT

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
LIMIT = 1e-6


def loaded(options: argparse.Namespace) -> Evaluation:
    """The result as `showtell evaluate` saved it, or of a file of captions."""
    if options.data is None:
        return Evaluation.load(options.captions)
    references = read_references(options.data, split=options.split)
    matched = match_predictions(read_predictions(options.captions), references, partial=options.partial)
    for note in matched.notes:
        print(note, file=sys.stderr)
    return score_predictions(Path(options.captions).name, matched.photos, metrics=METRICS)


def official(result: Evaluation) -> dict[str, tuple[float, np.ndarray[Any, Any]]]:
    """Metric -> the official value for all photos together, and photo by photo."""
    candidates = {i: [{"caption": photo.caption}] for i, photo in enumerate(result.photos)}
    references = {i: [{"caption": text} for text in photo.references] for i, photo in enumerate(result.photos)}
    with contextlib.redirect_stdout(sys.stderr):
        tokenizer = PTBTokenizer()
        words, wanted = tokenizer.tokenize(candidates), tokenizer.tokenize(references)
        bleu, bleu_each = Bleu(4).compute_score(wanted, words)
        rouge, rouge_each = Rouge().compute_score(wanted, words)
        cider, cider_each = Cider().compute_score(wanted, words)  # CIDEr-D, under the name that tables use
    corpus = [*bleu, rouge, cider]
    each = [*bleu_each, rouge_each, cider_each]
    return {metric: (float(corpus[i]), np.asarray(each[i], float)) for i, metric in enumerate(METRICS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="a result of `showtell evaluate --output`, or with --data anybody's captions")
    parser.add_argument("--data", help="what people wrote: anything `showtell evaluate --references` reads")
    parser.add_argument("--split", help="which photos of --data (default: test if it has one, else val)")
    parser.add_argument("--partial", action="store_true", help="score only the photos that have a caption")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None and (options.split or options.partial):
        parser.error(f"--split and --partial belong to --data; a result of {FORMAT} knows its photos")
    try:
        result = loaded(options)
    except ShowtellError as error:
        sys.exit(f"official_scores: {error}")
    missing = [metric for metric in METRICS if metric not in result.scores.corpus]
    if missing:
        sys.exit(f"the result lacks {', '.join(missing)}; evaluate again without --metrics")
    table, worst = {}, 0.0
    print(f"{'':9}{'showtell':>12}{'pycocoevalcap':>16}{'difference':>13}{'of a photo':>13}")
    for metric, (value, each) in official(result).items():
        ours = result.scores.corpus[metric]
        photo = float(np.abs(np.asarray(result.scores.each[metric]) - each).max())
        worst = max(worst, abs(ours - value))
        print(f"{metric:9}{ours:12.6f}{value:16.6f}{abs(ours - value):13.1e}{photo:13.1e}")
        table[metric] = {
            "showtell": round(ours, 6),
            "pycocoevalcap": round(value, 6),
            "difference": float(f"{abs(ours - value):.1e}"),
            "largest_difference_of_a_photo": float(f"{photo:.1e}"),
        }
    print(result.signature)
    text = {
        "what": f"{result.name}: the same {len(result.photos):,} captions scored by showtell and by pycocoevalcap",
        "scores": table,
        "signature": str(result.signature),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "versions": {
            "showtell": __version__,
            "pycocoevalcap": version("pycocoevalcap"),
            "java": java_version(),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if options.json:
        options.json.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    if not worst <= LIMIT:
        sys.exit(f"official_scores: a score differs by {worst:.1e}, more than {LIMIT:g}")


def java_version() -> str:
    """What `java -version` calls itself, which it prints where errors go."""
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    return said.splitlines()[0]


if __name__ == "__main__":
    main()
