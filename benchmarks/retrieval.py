"""Does a captioner find the caption of a photo, and the photo of a caption? By log-probability, and corrected.

    python benchmarks/retrieval.py DATA [--photos 100] [--model FOLDER] [--json out.json]

DATA is a dataset with a val split. Each of `--photos` photos of it has its captions among everybody's: recall@k of a
photo is whether one of its own captions is among the best k, that of a caption whether its photo is.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from measure import publish
from torch import Tensor

from showtell import Captioner, __version__, read_dataset
from showtell.ranking import Ranking


def recalls(ranking: Ranking, owner: Tensor) -> dict[str, float]:
    """`owner` (C,): the photo of each caption."""
    of_photos = owner[ranking.caption_order] == torch.arange(len(ranking.scores)).unsqueeze(1)
    of_captions = ranking.image_order == owner.unsqueeze(1)
    found = {}
    for name, hits in (("captions of a photo", of_photos), ("photo of a caption", of_captions)):
        for k in (1, 5):
            found[f"{name}, recall@{k}"] = round(100 * hits[:, :k].any(1).double().mean().item(), 1)
    # Does the order prefer short captions whatever the photo shows? Tokens of the best caption, all photos.
    found["tokens of the best caption"] = round(ranking.lengths[ranking.caption_order[:, 0]].double().mean().item(), 1)
    found["different best captions"] = len(ranking.caption_order[:, 0].unique())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--background", type=int, default=50, help="other photos that pmi compares with, for a row")
    parser.add_argument("--model", help="a captioner's folder; by default the bundled one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records = sorted(read_dataset(options.data).split("val"), key=lambda r: hashlib.sha256(r.id.encode()).digest())
    records, others = records[: options.photos], records[options.photos : options.photos + options.background]
    captioner = Captioner.default() if options.model is None else Captioner.from_pretrained(options.model)
    captions = [caption for record in records for caption in record.captions]
    owner = torch.tensor([place for place, record in enumerate(records) for _ in record.captions])
    features = captioner.encode([record.image for record in records])
    began = time.perf_counter()
    pmi = captioner.rank(features, captions, by="pmi")
    seconds = time.perf_counter() - began
    plain, lengths = pmi.log_probs, pmi.lengths  # the other two orders need no pass of their own
    usual = captioner.rank([record.image for record in others], captions).log_probs.double()
    scores = {
        "log_prob": plain,
        "per_token": plain / lengths,
        "pmi": pmi.scores,
        f"pmi, background of {len(others)} other photos": plain - (usual.logsumexp(0) - math.log(len(others))),
        "minus the mean log_prob": plain - plain.mean(0),
        "pmi minus each photo's mean": pmi.scores - pmi.scores.mean(1, keepdim=True),
    }
    rankings = {kind: Ranking(pmi.captions, plain, lengths, each) for kind, each in scores.items()}
    result: dict[str, Any] = {
        "showtell": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "model": options.model or "bundled",
        "photos": len(records),
        "captions": len(captions),
        "pairs_per_second": round(len(records) * len(captions) / seconds),
        "mean_tokens": round(lengths.double().mean().item(), 1),
        "recall_percent": {kind: recalls(ranking, owner) for kind, ranking in rankings.items()},
    }
    publish(result, options.json)


if __name__ == "__main__":
    main()
