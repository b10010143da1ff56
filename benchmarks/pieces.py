"""What single pieces of a step gain: few rows by large matrices, the best words of wide rows, the LSTM's cell.

    python benchmarks/pieces.py [--rounds 15] [--json out.json]

Each piece and what stood in its place take turns, on a CPU, with random weights; `docs/speed.md` has the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import in_turn, machine, median, publish, ratio
from systems import BEAM_3, END, NO_END, START, VOCABULARY
from torch import nn

from showtell import Features, __version__, generate
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder, parts
from showtell.search import frontier

CPU = torch.device("cpu")
Call = Callable[[], Any]


def without(call: Call, fast_path: AbstractContextManager[Any]) -> Call:
    """The call with a fast path switched off."""

    def slow() -> Any:
        with fast_path:
            return call()

    return slow


def compared(before: Call, now: Call, rounds: int) -> dict[str, float]:
    took = in_turn({"before": before, "now": now}, rounds, CPU)
    return {
        "before_ms": round(1000 * median(took["before"]), 2),
        "now_ms": round(1000 * median(took["now"]), 2),
        "times_as_fast": ratio(took, "before", "now"),
    }


def one_photo(decoder: nn.Module, rounds: int) -> dict[str, float]:
    """20 words of beam 3 for one photo, features ready."""
    dim = decoder.config()["feature_dim"]
    features = Features(torch.randn(1, dim), torch.randn(1, 49, dim))

    def now() -> Any:
        return generate(decoder.eval(), features, BEAM_3, start=START, end=END, forbid=NO_END)

    return compared(without(now, patch.object(parts, "_LARGE", sys.maxsize)), now, rounds)


def best_words(rows: int, rounds: int) -> dict[str, float]:
    values = torch.randn(rows, VOCABULARY)

    def now() -> Any:
        return frontier.best(values, 6)

    return compared(without(now, patch.object(frontier, "_PIECE", sys.maxsize)), now, rounds)


def cell(rows: int, rounds: int) -> dict[str, float]:
    lstm, words = nn.LSTM(256, 512, batch_first=True), torch.randn(rows, 256)
    weights = [getattr(lstm, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
    h, c = torch.randn(rows, 512), torch.randn(rows, 512)
    with torch.inference_mode():
        return compared(
            lambda: lstm(words.unsqueeze(1), (h.unsqueeze(0), c.unsqueeze(0))),
            lambda: torch.lstm_cell(words, (h, c), *weights),
            rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    gpt2 = TransformerDecoder(50_257, 768, hidden_dim=768, layers=12, heads=12, feedforward_dim=3072)
    result = {
        "showtell": __version__,
        "torch": torch.__version__,
        "machine": machine(CPU),
        "one photo, beam 3, 20 words": {
            "lstm.v1": one_photo(LSTMDecoder(VOCABULARY, 2048), options.rounds),
            "attention-lstm.v1": one_photo(AttentionLSTMDecoder(VOCABULARY, 2048), options.rounds),
            "transformer.v1 of GPT-2's size": one_photo(gpt2, max(3, options.rounds // 3)),
        },
        "the 6 best of 10,000 words": {f"{rows} rows": best_words(rows, options.rounds) for rows in (3, 96, 320)},
        "one step of an LSTM of 512": {f"{rows} rows": cell(rows, options.rounds) for rows in (5, 96, 320)},
    }
    publish(result, options.json)


if __name__ == "__main__":
    main()
