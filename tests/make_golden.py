"""Makes tests/golden/1: a captioner of each decoder as format version 1 saves it, and what it says.

Run once, `python tests/make_golden.py`, when the version was new. Don't run it again: that these files still open, as
they were written then, is what test_golden.py is about. A new format version gets a folder of its own beside this one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from showtell import Beam, Captioner, Features, Vocabulary
from showtell.decoders import AdaptiveLSTMDecoder, AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder
from showtell.encoders.precomputed import PrecomputedFeatures

GOLDEN = Path(__file__).parent / "golden" / "1"
CAPTIONS = ["a red dog runs on the grass", "two cats sit in a box", "the man's t-shirt is blue"]


def features(seed: int, count: int = 3, regions: int = 4, dim: int = 6) -> Features:
    """Numbers that any computer makes alike: multiples of 1/8 by a little arithmetic."""
    numbers = [
        ((seed + 7) * (i + 3) * 2654435761 % 2**32 // 2**24 - 128) / 64 for i in range(count * (regions + 1) * dim)
    ]
    table = torch.tensor(numbers).view(count, regions + 1, dim)
    return Features(table[:, 0].contiguous(), table[:, 1:].contiguous())


def decoders(words: int) -> dict[str, Any]:
    """One of each kind, with options that aren't the defaults."""
    shared: dict[str, Any] = {"vocab_size": words, "feature_dim": 6, "embed_dim": 8, "dropout": 0.25}
    return {
        "lstm": LSTMDecoder(**shared, hidden_dim=10, layers=2, image="every-step", tied=True),
        "attention": AttentionLSTMDecoder(**shared, hidden_dim=10, attention_dim=7, gate="vector", tied=True),
        "adaptive": AdaptiveLSTMDecoder(**shared, hidden_dim=10, attention_dim=7),
        "transformer": TransformerDecoder(
            vocab_size=words,
            feature_dim=6,
            hidden_dim=8,
            heads=2,
            layers=2,
            feedforward_dim=16,
            positions="learned",
            max_positions=24,
        ),
    }


def said(captioner: Captioner) -> list[dict[str, Any]]:
    """What it says of some features: texts and how likely they are."""
    captions = captioner.caption(features(1))
    return [{"text": each.text, "log_prob": round(each.log_prob, 4)} for each in captions]


def main() -> None:
    """Write the folders."""
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    dtypes = {"lstm": "float32", "attention": "float16", "adaptive": "bfloat16", "transformer": "float32"}
    for name, decoder in decoders(len(vocabulary)).items():
        search = Beam(3, max_length=9, length_penalty=0.7)
        captioner = Captioner(PrecomputedFeatures(6, grid=name != "lstm"), decoder, vocabulary, search=search)
        for seed in range(100):  # until each photo has a caption of its own
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in decoder.parameters():
                    parameter.uniform_(-1.5, 1.5, generator=generator)
            if len({each["text"] for each in said(captioner)} - {""}) == 3:
                break
        captioner.save_pretrained(GOLDEN / name, weights_dtype=dtypes[name])
        found = said(Captioner.from_pretrained(GOLDEN / name))
        (GOLDEN / name / "says.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
