"""In which numbers a step is computed: float32, or 16 bits where autocast allows; with float16 the loss is scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import choice
from ..errors import ArgumentError

__all__ = ["PRECISIONS", "Precision", "at_hand"]

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def at_hand(name: str, device: torch.device) -> str:
    """`name`, but "fp32" for "bf16" on a CPU that imitates it, far slower, or not at all in an LSTM.

    Of x86 processors those with AVX-512 do better.
    """
    slow = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))
    return "fp32" if name == "bf16" and slow else name


class Precision:
    """Autocast, and for float16 the scale that keeps small gradients from becoming 0.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> precision = Precision("fp16", [weight])
        >>> precision.backward((weight * 3).sum())
        >>> precision.unscale(optimizer)
        >>> weight.grad.item()
        3.0

    The scale begins at 65,536, is halved when a gradient isn't finite and doubled after 2,000 steps without that
    (`torch.amp.GradScaler`). Weights stay in float32.

    Args:
        name: "fp32", "bf16" or "fp16"; see `at_hand`.
        parameters: what trains; their device is where it happens.

    Raises:
        ArgumentError: no such precision, or fp16 and parameters that are not float32.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], parameters: list[nn.Parameter]) -> None:
        """Look at the device; nothing is computed."""
        self.device = parameters[0].device
        self.name = at_hand(choice("precision", name, PRECISIONS), self.device)
        self.skipped = 0
        self._scaler = torch.amp.GradScaler(self.device.type) if name == "fp16" else None
        if self._scaler is not None and (other := {p.dtype for p in parameters} - {torch.float32}):
            raise ArgumentError(f'precision="fp16" needs float32 weights, not {other.pop()}; use captioner.float()')

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Where the model and the loss are computed."""
        plain = _without_onednn() if self.name == "fp16" and self.device.type == "cpu" else nullcontext()
        with plain, torch.autocast(self.device.type, _DTYPES.get(self.name), enabled=self.name != "fp32"):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step, scaled."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale."""
        if self._scaler is not None:
            # The scale comes to be with the first loss, and a process without photos has had none.
            self._scaler.scale(torch.zeros((), device=self.device))
            self._scaler.unscale_(optimizer)

    def passed(self) -> None:
        """After a step with finite gradients: the scale may grow."""
        if self._scaler is not None:
            self._scaler.update()

    def may_skip(self) -> bool:
        """After gradients that aren't finite: whether a smaller scale may mend that, so that the step is left out.

        Always False but for fp16, whose scale is halved; False too when it was as small as 1 already.
        """
        if self._scaler is None:
            return False
        before = self._scaler.get_scale()
        self._scaler.update()
        if before <= 1.0 or not self._scaler.get_scale() < before:
            return False
        self.skipped += 1
        return True

    def state_dict(self) -> dict[str, Any] | None:
        """The scale and how many steps were skipped; None where nothing is scaled."""
        return None if self._scaler is None else {"scaler": self._scaler.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with that scale."""
        assert self._scaler is not None
        self._scaler.load_state_dict(dict(state["scaler"]))
        self.skipped = int(state["skipped"])


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN has no float16 LSTM for most processors; torch's own is slow, and there."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
