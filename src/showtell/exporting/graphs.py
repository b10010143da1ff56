"""The two graphs of a captioner: a photo becomes memory and state; a word, state and memory become scores and state."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..captioner import Captioner
from ..rows import Rows

__all__ = ["Graphs", "trace"]


class Graphs(NamedTuple):
    """The exported programs, and the names of the memory's and the state's tensors in their order."""

    encoder: Any
    step: Any
    memory: tuple[str, ...]
    state: tuple[str, ...]
    bounded: bool  # whether the state has room for max_length tokens only


class _Encode(nn.Module):
    """Images (N, 3, H, W) in 0..1 -> memory and the first state, N rows each."""

    def __init__(self, captioner: Captioner, max_length: int) -> None:
        super().__init__()
        self.encoder, self.decoder = cast(nn.Module, captioner.encoder), cast(nn.Module, captioner.decoder)
        self.max_length = max_length

    def forward(self, images: Tensor) -> tuple[Rows, Rows]:
        decoder = cast(Any, self.decoder)
        memory = decoder.prepare(self.encoder(images))
        # Copied, as torch before 2.11 gives one output of a graph only one name.
        return memory, {k: v.clone() for k, v in decoder.initial_state(memory, self.max_length).items()}


class _Step(nn.Module):
    """Tokens (R,), state and memory of R rows -> logits (R, V) and the new state."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.decoder = cast(nn.Module, captioner.decoder)

    def forward(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        # Copied, as a decoder may write into its state and a graph may not into its inputs.
        logits, after = cast(Any, self.decoder).step(tokens, {k: v.clone() for k, v in state.items()}, memory)
        return logits, after


def trace(captioner: Captioner, max_length: int) -> Graphs:
    """Both graphs, for any number of photos and rows."""
    captioner = captioner.for_inference().to("cpu", torch.float32).eval()
    spec = captioner.encoder.image_spec
    images = torch.full((3, 3, spec.height, spec.width), 0.5)
    rows = torch.export.Dim("rows", min=1, max=65535)
    encode, step = _Encode(captioner, max_length), _Step(captioner)
    with torch.no_grad():
        # Clones, as one tensor given twice would become one input.
        memory, state = ({name: t.clone() for name, t in each.items()} for each in encode(images))
        tokens = torch.ones(3, dtype=torch.int64)
        shorter = encode.decoder.initial_state(memory, max(1, max_length - 1))  # type: ignore[operator]
        bounded = max_length > 1 and any(shorter[name].shape != state[name].shape for name in state)
        each_memory, each_state = ({name: {0: rows} for name in rows_of} for rows_of in (memory, state))
        return Graphs(
            torch.export.export(encode, (images,), dynamic_shapes=({0: rows},)),
            torch.export.export(step, (tokens, state, memory), dynamic_shapes=({0: rows}, each_state, each_memory)),
            tuple(memory),
            tuple(state),
            bounded,
        )
