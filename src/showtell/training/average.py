"""An exponential moving average of the weights: steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import number, whole
from ..errors import ArgumentError

__all__ = ["WeightAverage"]


class WeightAverage:
    """A moving average of what changes in a model while it trains.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, model.parameters(), decay=0.5)
        >>> for value in (4.0, 0.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update()
        >>> with average.applied():
        ...     round(model.weight.item(), 4)  # after the 1st update 4, then 2/11 of it
        0.7273
        >>> model.weight.item()
        0.0

    The first update takes the weights as they are; update k after it (from 1) keeps the share min(decay,
    (1 + k) / (10 + k)) of the average and takes the rest from the weights, so that the first weights are soon
    forgotten. Averaged are the given parameters and the floating-point buffers that are saved (the statistics of batch
    norms), in float32 at least; whole numbers stay as they are.

    Args:
        model: what the parameters belong to.
        parameters: those that train, now or later.
        decay: 0..0.999999; 0.999 averages over about a thousand steps.

    Raises:
        ArgumentError: decay out of range.
    """

    def __init__(self, model: nn.Module, parameters: Any, decay: float) -> None:
        """Keep the tensors by name; no copy is made before the first update."""
        self.decay = number("decay", decay, 0.0, 0.999999)
        self.count = 0
        wanted = {id(parameter) for parameter in parameters}
        saved = model.state_dict(keep_vars=True)
        buffers = {name: t for name, t in model.named_buffers() if name in saved and t.is_floating_point()}
        self._live = {name: t for name, t in model.named_parameters() if id(t) in wanted} | buffers
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        live = [tensor.detach().to(_wide(tensor)) for tensor in self._live.values()]
        if not self._average:
            self._average = {name: t.clone() for name, t in zip(self._live, live, strict=True)}
        else:
            kept = min(self.decay, (1 + self.count) / (10 + self.count))
            torch._foreach_lerp_(list(self._average.values()), live, 1.0 - kept)
        self.count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averaged weights, for a while; before the first update it stays as it is."""
        exact = {name: self._live[name].detach().clone() for name in self._average}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(exact)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        # In place: an optimizer holds these very parameters, and an LSTM on a GPU wants its weights where they are.
        for name, value in values.items():
            self._live[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """How many updates there were, and the averages by name."""
        return {"count": self.count, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises ArgumentError when it belongs to another model."""
        average: dict[str, Tensor] = dict(state["average"])
        count = whole("count", state["count"], 0, 2**62)
        shapes = {name: tuple(t.shape) for name, t in average.items()}
        if shapes != ({name: tuple(t.shape) for name, t in self._live.items()} if count else {}):
            raise ArgumentError("the averaged weights belong to another model, or other parts of it are trained")
        self.count = count
        self._average = {name: t.to(self._live[name].device, _wide(self._live[name])) for name, t in average.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32
