"""What every search shares: the step it calls, the hypotheses it returns, and the checks around both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ArgumentError, RunError
from ..rows import Rows

__all__ = [
    "ROUNDING",
    "Chosen",
    "Hypotheses",
    "Search",
    "Step",
    "absent",
    "call_step",
    "check_start",
    "looking_is_free",
    "raise_for",
    "time_to_look",
]

Step = Callable[[Tensor, Rows], tuple[Tensor, Rows]]
"""(prefix (R, t) int64 with the start token first, state of R rows) -> (log-probabilities (R, V), new state)."""

_ACCELERATOR_CHECKS_EVERY = 8  # steps; asking a GPU "all done?" makes the host wait for it
ROUNDING = 1e-3  # how far above 0 a log-probability may lie before it is called wrong


class Hypotheses(NamedTuple):
    """The captions a search found, K for each of N images, best first.

    tokens (N, K, T) int64, padded with the end token, T the search's `max_length`; lengths (N, K) int64, counting
    the end token where there is one; token_log_probs (N, K, T), 0 beyond the length; log_probs (N, K), their sums;
    scores (N, K), what the search ranked by. A hypothesis that doesn't exist has length 0 and score -inf.
    """

    tokens: Tensor
    lengths: Tensor
    token_log_probs: Tensor
    log_probs: Tensor
    scores: Tensor


class Chosen(NamedTuple):
    """One step of `Greedy.steps` or `Sample.steps`: tokens (R,) int64, their log_probs (R,); end and 0 once ended."""

    tokens: Tensor
    log_probs: Tensor


@runtime_checkable
class Search(Protocol):
    """What `generate` asks of a search."""

    @property
    def max_length(self) -> int:
        """The most tokens a caption may have, the end token included."""
        ...

    def __call__(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Hypotheses:
        """Search from a state of N rows; see `Greedy` and `Beam`."""
        ...


def absent(images: int, size: int, max_length: int, end: int, device: torch.device | str) -> Hypotheses:
    """N x K hypotheses that don't exist."""
    return Hypotheses(
        tokens=torch.full((images, size, max_length), end, dtype=torch.int64, device=device),
        lengths=torch.zeros(images, size, dtype=torch.int64, device=device),
        token_log_probs=torch.zeros(images, size, max_length, device=device),
        log_probs=torch.full((images, size), -math.inf, device=device),
        scores=torch.full((images, size), -math.inf, device=device),
    )


def looking_is_free(device: torch.device) -> bool:
    """Whether reading a tensor's value makes nobody wait; on an accelerator the host waits for the device."""
    return device.type == "cpu"


def time_to_look(length: int, device: torch.device) -> bool:
    """Whether to ask "all done?" after this step; results don't depend on it."""
    return looking_is_free(device) or length % _ACCELERATOR_CHECKS_EVERY == 0


def check_start(state: Rows, images: int, start: int, end: int) -> None:
    """Refuse a state that hasn't one row an image."""
    for name, value in (("images", images), ("start", start), ("end", end)):
        if type(value) is not int or value < 0:
            raise ArgumentError(f"{name} must be a whole number of at least 0, not {value!r:.100}")
    for name, tensor in state.items():
        if tensor.ndim < 1 or tensor.shape[0] != images:
            raise ArgumentError(
                f"the first state has one row an image, {images}; its {name!r} has the shape {tuple(tensor.shape)}"
            )


def call_step(step: Step, prefix: Tensor, state: Rows, end: int) -> tuple[Tensor, Rows]:
    """Run the step and check the shape of what it returns; half precision becomes float32."""
    log_probs, state = step(prefix, state)
    rows = prefix.shape[0]
    if log_probs.ndim != 2 or log_probs.shape[0] != rows or not log_probs.is_floating_point():
        raise ArgumentError(
            f"a step of {rows} rows returns floating-point log-probabilities ({rows}, vocabulary), not "
            f"{log_probs.dtype} {tuple(log_probs.shape)}"
        )
    if end >= log_probs.shape[1]:
        raise ArgumentError(f"the end token {end} is outside the step's vocabulary of {log_probs.shape[1]}")
    return (log_probs.float() if log_probs.dtype in (torch.float16, torch.bfloat16) else log_probs), state


def raise_for(wrong: Tensor, stuck: Tensor) -> None:
    """wrong (N,): saw NaN or positive values; stuck (N,): has no caption and may not go on."""
    if bool(wrong.any()):
        raise RunError(
            f"image {int(wrong.nonzero()[0, 0])}: the step returned NaN or log-probabilities above 0; if the model's "
            "weights and features are finite, check that the step ends in log_softmax"
        )
    if bool(stuck.any()):
        raise RunError(
            f"image {int(stuck.nonzero()[0, 0])}: every next word was forbidden before a caption was complete; "
            "forbid fewer words"
        )
