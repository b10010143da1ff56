"""The training loop: a generator of steps that the caller logs, evaluates and stops."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from ..checks import choice, number, whole
from ..data import prefetched
from ..errors import ArgumentError, RunError
from ..protocols import move
from .objectives import Objective, at_step

__all__ = ["BatchSource", "StepReport", "Trainer"]


class BatchSource(Protocol):
    """Micro-batches by number, endless: a pure function of the number, so that training can continue anywhere."""

    def batch(self, number: int, /) -> Any:
        """The micro-batch of that number, from 0."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    step: how many steps are done, from 1. loss: the sum of factor * term. terms: each term, divided by its total
    weight. grad_norm: before clipping. learning_rate: of the first parameter group. tokens: real words seen.
    seconds: of the whole step; data_share: the part of them, 0..1, spent waiting for data. notes: what the objective
    only notes, divided alike (the mean reward, say).
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    data_share: float
    notes: Mapping[str, float] = field(default_factory=dict)


class _Done(NamedTuple):
    """A step: its terms and notes, each divided by its total weight, its loss, the gradient's length unclipped."""

    terms: dict[str, float]
    notes: dict[str, float]
    loss: float
    norm: float


class Trainer:
    """Trains a captioner, one optimizer step at a time.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from showtell.testing import tiny_captioner
        >>> from showtell.training import CrossEntropy
        >>> captioner = tiny_captioner()
        >>> tokens = torch.tensor([[captioner.vocabulary.start_id, 4]])
        >>> batch = SimpleNamespace(
        ...     inputs=torch.rand(1, 3, 32, 32), tokens=tokens, targets=torch.tensor([[4, 2]]),
        ...     weights=torch.ones(1, 2), trunk=False,
        ... )
        >>> batches = SimpleNamespace(batch=lambda number: batch)
        >>> trainer = Trainer(captioner, CrossEntropy(), torch.optim.SGD(captioner.parameters(), lr=0.1))
        >>> losses = []
        >>> for report in trainer.steps(batches):
        ...     losses.append(report.loss)
        ...     if report.step == 5:
        ...         break
        >>> losses[-1] < losses[0]
        True

    A step is `accumulate` micro-batches; each term of the objective is divided by its total weight over all of
    them, so that how photos are spread over micro-batches changes nothing. What is random in the model (dropout)
    is a function of (seed, step), and an objective that draws is asked for each step anew, `at(step, seed)`: a trainer
    that is loaded continues exactly, and the caller's random numbers are left alone. Modules without a trainable
    parameter stay in eval mode.

    Args:
        captioner: the model; what is trained is what requires a gradient.
        objective: a loss in terms, `CrossEntropy()` for instance.
        optimizer: over the captioner's parameters; its learning rates are the base of the schedule.
        schedule: step (from 0) -> factor of the learning rates; default: always 1.
        precision: "fp32", or "bf16" for bfloat16 autocast.
        accumulate: micro-batches a step, 1..4096.
        clip_norm: the longest gradient allowed, over 0; None: no clipping.
        seed: of everything random in the model.

    Raises:
        ArgumentError: an option makes no sense.
    """

    def __init__(
        self,
        captioner: Any,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float] | None = None,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the parts; nothing runs before `steps`."""
        self.captioner = captioner
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = choice("precision", precision, ("fp32", "bf16"))
        self.accumulate = whole("accumulate", accumulate, 1, 4096)
        self.clip_norm = math.inf if clip_norm is None else number("clip_norm", clip_norm, 1e-9, 1e9)
        self.seed = whole("seed", seed, 0, 2**63 - 1)
        self.step_count = 0
        self._parameters = [p for p in captioner.parameters() if p.requires_grad]
        if not self._parameters:
            raise ArgumentError("nothing to train: no parameter of the captioner requires a gradient")
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._frozen = _frozen_modules(captioner)

    def steps(self, batches: BatchSource) -> Generator[StepReport, None, None]:
        """Train for ever, from where the trainer stands; the caller stops by leaving the loop.

        The next micro-batch is made in a thread of its own while the model computes. Before the first step it
        is checked that the captioner can be saved.

        Raises:
            ArgumentError: the captioner can't be saved.
            RunError: a loss or a gradient is not finite; the weights are those of the step before.
        """
        self.captioner.save_pieces()
        with closing(prefetched(batches, self.step_count * self.accumulate)) as stream:
            while True:
                started = time.perf_counter()
                pulled = list(islice(stream, self.accumulate))
                micro = [batch for batch, _ in pulled]
                waited = sum(seconds for _, seconds in pulled)
                done = self._step(micro)
                seconds = time.perf_counter() - started
                yield StepReport(
                    step=self.step_count,
                    loss=done.loss,
                    terms=done.terms,
                    grad_norm=done.norm,
                    learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                    tokens=sum(int((batch.weights > 0).sum()) for batch in micro),
                    seconds=seconds,
                    data_share=waited / seconds if seconds > 0 else 0.0,
                    notes=done.notes,
                )

    def _step(self, micro: list[Any]) -> _Done:
        """One optimizer step over all micro-batches."""
        totals = self._totals(micro)
        factor = 1.0 if self.schedule is None else self.schedule(self.step_count)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor
        self.captioner.train()
        for module in self._frozen:
            module.eval()
        device = self._parameters[0].device
        sums = dict.fromkeys(totals, 0.0)
        noted: set[str] = set()
        loss = 0.0
        objective = at_step(self.objective, self.step_count, self.seed)
        self.optimizer.zero_grad(set_to_none=True)
        with _seeded(device, self.seed, self.step_count):
            for batch in micro:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    terms = objective(self.captioner, move(batch, device))
                noted |= {name for name, term in terms.items() if term.factor is None}
                parts = {
                    name: (1.0 if term.factor is None else term.factor) * term.sum / totals[name]
                    for name, term in terms.items()
                }
                scaled = torch.stack([part.reshape(()) for name, part in parts.items() if name not in noted]).sum()
                for name, part in parts.items():
                    sums[name] += float(part.detach())
                loss += float(scaled.detach())
                if not math.isfinite(loss):
                    raise self._not_finite("loss", loss)
                scaled.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.clip_norm))
        if not math.isfinite(norm):
            raise self._not_finite("gradient", norm)
        self.optimizer.step()
        self.step_count += 1
        notes = {name: sums.pop(name) for name in sorted(noted)}
        return _Done(sums, notes, loss, norm)

    def _totals(self, micro: list[Any]) -> dict[str, float]:
        """Each term's total weight over the step: the one number that more than one process would have to share."""
        totals: dict[str, float] = {}
        for batch in micro:
            for name, weight in self.objective.weights(batch).items():
                totals[name] = totals.get(name, 0.0) + weight
        empty = [name for name, total in totals.items() if not total > 0]
        if empty:
            raise RunError(
                f"step {self.step_count + 1}: the batches hold no word to learn from ({', '.join(empty)} has weight "
                "0 in all of them); look at the captions of the data"
            )
        return totals

    def _not_finite(self, what: str, value: float) -> RunError:
        self.optimizer.zero_grad(set_to_none=True)
        bf16 = ' or precision="fp32"' if self.precision == "bf16" else ""
        return RunError(
            f"step {self.step_count + 1}: the {what} is {value}; the weights are still those of the step before. Try "
            f"a lower learning rate, a longer warm-up, gradient clipping{bf16}; if it is so at step 1, look for "
            "values that aren't finite in the features or the weights"
        )

    def state_dict(self) -> dict[str, Any]:
        """The step count and the optimizer's state; `torch.load(weights_only=True)` reads them back.

        The captioner's weights are not in it: save `captioner.state_dict()` beside it to continue exactly.
        """
        return {"step": self.step_count, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the trainer that gave `state` stood; raises ArgumentError when it doesn't fit."""
        if set(state) != {"step", "optimizer"}:
            raise ArgumentError(f"a trainer's state holds step and optimizer, not {sorted(state)!r:.200}")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ArgumentError(f"the optimizer's state belongs to another optimizer or model: {error}") from error
        self.step_count = whole("step", state["step"], 0, 2**62)


def _frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules that have parameters, none of them trainable; a frozen part may hold dropout too."""
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [model]
    return [frozen for child in model.children() for frozen in _frozen_modules(child)]


@contextmanager
def _seeded(device: torch.device, seed: int, step: int) -> Iterator[None]:
    """Random numbers as a function of (seed, step); afterwards the generators stand where they stood."""
    digest = hashlib.blake2b(f"showtell {seed} {step}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(value)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
