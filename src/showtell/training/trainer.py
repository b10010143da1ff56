"""The training loop: a generator of steps that the caller logs, evaluates and stops."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

from ..checks import flag, number, whole
from ..data import prefetched
from ..errors import ArgumentError, RunError
from ..protocols import move
from .average import WeightAverage
from .objectives import Objective, at_step
from .precision import Precision
from .room import Room, norm_statistics, out_of_memory, put_back

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
    only notes, divided alike (the mean reward, say). skipped: steps so far that left the weights alone, as their
    float16 gradients weren't finite. photos_at_once: how many photos are computed at a time since memory ran out; None:
    whole micro-batches.
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
    skipped: int = 0
    photos_at_once: int | None = None


class _Sums(NamedTuple):
    """A step's terms and notes, each divided by its total weight."""

    terms: dict[str, float]
    notes: dict[str, float]

    @property
    def loss(self) -> float:
        return math.fsum(self.terms.values())


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

    When memory runs out, the step is begun again with half as many photos at a time, and so are all steps after it. It
    is the same step but for dropout's random numbers and batch norms that take their statistics from the batch.

    Args:
        captioner: the model; what is trained is what requires a gradient.
        objective: a loss in terms, `CrossEntropy()` for instance.
        optimizer: over the captioner's parameters; its learning rates are the base of the schedule.
        schedule: step (from 0) -> factor of the learning rates; default: always 1.
        precision: "fp32", or "bf16" for bfloat16 autocast, or "fp16" for float16 autocast with a scaled loss: a step
            whose gradients overflow is skipped, counted, and the scale halved.
        accumulate: micro-batches a step, 1..4096.
        clip_norm: the longest gradient allowed, over 0; None: no clipping.
        seed: of everything random in the model.
        late: step (from 0) -> parameters that are frozen before it and trained from then on.
        keep_eval: modules that stay in eval mode though their weights may train: batch norms whose statistics are to
            stay.
        ema_decay: keep a moving average of the weights, 0..0.999999, see `averaged`; None: none.
        compiled: run the model through torch.compile. The captioner and the names of its weights stay as they are.
        photos_at_once: the most photos to compute at a time, where it is known that more don't fit; None: whole
            micro-batches until memory runs out.

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
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
        late: Mapping[int, Iterable[nn.Parameter]] | None = None,
        keep_eval: Iterable[nn.Module] = (),
        ema_decay: float | None = None,
        compiled: bool = False,
        photos_at_once: int | None = None,
    ) -> None:
        """Keep the parts; nothing runs before `steps`."""
        self.captioner = captioner
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.accumulate = whole("accumulate", accumulate, 1, 4096)
        self.clip_norm = math.inf if clip_norm is None else number("clip_norm", clip_norm, 1e-9, 1e9)
        self.seed = whole("seed", seed, 0, 2**63 - 1)
        self.step_count = 0
        self._parameters = [p for p in captioner.parameters() if p.requires_grad]
        if not self._parameters:
            raise ArgumentError("nothing to train: no parameter of the captioner requires a gradient")
        self._precision = Precision(precision, self._parameters)
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._late = {whole("late", step, 0, 2**62): list(found) for step, found in (late or {}).items()}
        self._keep_eval = list(keep_eval)
        self._check_late()
        self._average = None if ema_decay is None else WeightAverage(captioner, self._parameters, ema_decay)
        self._model: Any = torch.compile(captioner) if flag("compiled", compiled) else captioner
        self._room = Room(None if photos_at_once is None else whole("photos_at_once", photos_at_once, 1, 2**31))
        self._freeze()

    def steps(self, batches: BatchSource) -> Generator[StepReport, None, None]:
        """Train for ever, from where the trainer stands; the caller stops by leaving the loop.

        The next micro-batch is made in a thread of its own while the model computes. Before the first step it
        is checked that the captioner can be saved.

        Raises:
            ArgumentError: the captioner can't be saved.
            RunError: a loss or a gradient is not finite, or memory runs out with a single photo; the weights are
                those of the step before.
        """
        self.captioner.save_pieces()
        with closing(prefetched(batches, self.step_count * self.accumulate)) as stream:
            while True:
                started = time.perf_counter()
                pulled = list(islice(stream, self.accumulate))
                micro = [batch for batch, _ in pulled]
                waited = sum(seconds for _, seconds in pulled)
                sums, norm = self._step(micro)
                seconds = time.perf_counter() - started
                yield StepReport(
                    step=self.step_count,
                    loss=sums.loss,
                    terms=sums.terms,
                    grad_norm=norm,
                    learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                    tokens=sum(int((batch.weights > 0).sum()) for batch in micro),
                    seconds=seconds,
                    data_share=waited / seconds if seconds > 0 else 0.0,
                    notes=sums.notes,
                    skipped=self.skipped,
                    photos_at_once=self.photos_at_once,
                )

    @property
    def skipped(self) -> int:
        """Steps so far that left the weights alone."""
        return self._precision.skipped

    @property
    def photos_at_once(self) -> int | None:
        """How many photos are computed at a time since memory ran out; None: whole micro-batches."""
        return self._room.photos

    def averaged(self) -> AbstractContextManager[None]:
        """The captioner with the averaged weights, for a while: to evaluate and to save; without `ema_decay` as it is.

        It must not be trained meanwhile.
        """
        return nullcontext() if self._average is None else self._average.applied()

    def _step(self, micro: list[Any]) -> tuple[_Sums, float]:
        """One optimizer step over all micro-batches: its terms and notes, the gradient's length before clipping."""
        totals = self._totals(micro)
        factor = 1.0 if self.schedule is None else self.schedule(self.step_count)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor
        if self.step_count in self._late:
            self._freeze()
        self._set_modes()
        statistics = norm_statistics(module for module, training in self._modes if training)
        while (sums := self._gradients(micro, totals)) is None:
            put_back(statistics)
        self._precision.unscale(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.clip_norm))
        if math.isfinite(norm):
            self._update()
            if self._average is not None:
                self._average.update()
        elif not self._precision.may_skip():
            raise self._not_finite("gradient", norm)
        self.step_count += 1
        return sums, norm

    def _update(self) -> None:
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RunError(
                f"step {self.step_count + 1}: memory runs out for the optimizer's own numbers, two for each trained "
                "weight with AdamW, however few photos there are at a time; train fewer weights (train_encoder = false "
                "or its last parts only), take a smaller model, or another optimizer, and begin again from a checkpoint"
            ) from error
        self._precision.passed()

    def _gradients(self, micro: list[Any], totals: dict[str, float]) -> _Sums | None:
        """Add up the gradients of a step; None when memory ran out and there is less to do at a time."""
        device = self._precision.device
        objective = at_step(self.objective, self.step_count, self.seed)
        sums = _Sums({}, {})
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with _seeded(device, self.seed, self.step_count):
                for batch in micro:
                    for part in self._room.parts(batch):
                        self._add(objective, part, totals, sums)
            return sums
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self.optimizer.zero_grad(set_to_none=True)
            self._room.shrink(self.step_count + 1, error)
        # Out here the error is gone, and with it the tensors that its traceback held.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _add(self, objective: Objective, batch: Any, totals: dict[str, float], sums: _Sums) -> None:
        """The gradients, the terms and the notes of one part of a step."""
        with self._precision.autocast():
            terms = objective(self._model, move(batch, self._precision.device))
        learnt = []
        for name, term in terms.items():
            into = sums.notes if term.factor is None else sums.terms
            part = (1.0 if term.factor is None else term.factor) * term.sum / totals[name]
            into[name] = into.get(name, 0.0) + float(part.detach())
            if term.factor is not None:
                learnt.append(part.reshape(()))
        if not math.isfinite(sums.loss):
            raise self._not_finite("loss", sums.loss)
        self._precision.backward(torch.stack(learnt).sum())

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
        bf16 = ' or precision="fp32"' if self._precision.name != "fp32" else ""
        return RunError(
            f"step {self.step_count + 1}: the {what} is {value}; the weights are still those of the step before. Try "
            f"a lower learning rate, a longer warm-up, gradient clipping{bf16}; if it is so at step 1, look for "
            "values that aren't finite in the features or the weights"
        )

    def _check_late(self) -> None:
        trained = {id(parameter) for parameter in self._parameters}
        waiting = {id(p): step for step, parameters in self._late.items() for p in parameters}
        if waiting.keys() - trained:
            raise ArgumentError("late names parameters that the captioner hasn't, or that don't require a gradient")
        if not trained - {p for p, step in waiting.items() if step > 0}:
            raise ArgumentError("late leaves nothing to train at step 0; leave some parameters out of it")

    def _freeze(self) -> None:
        """Freeze the parameters whose time hasn't come; what is frozen altogether will be in eval mode."""
        for step, parameters in self._late.items():
            for parameter in parameters:
                parameter.requires_grad_(self.step_count >= step)
        self._frozen = _frozen_modules(self.captioner)
        self._modes: list[tuple[nn.Module, bool]] = []

    def _set_modes(self) -> None:
        """Training mode, but for what is frozen; where all modes are right, nothing is set, as that takes a while."""
        if self._modes and all(module.training is training for module, training in self._modes):
            return
        self.captioner.train()
        for module in (*self._frozen, *self._keep_eval):
            module.eval()
        self._modes = [(module, module.training) for module in self.captioner.modules()]

    def state_dict(self) -> dict[str, Any]:
        """The step count and the optimizer's state; `torch.load(weights_only=True)` reads them back.

        With them, where there is such a thing: the averaged weights, the scale of fp16, and how many photos fit into
        memory. The captioner's weights are not in it: save `captioner.state_dict()` beside it to continue exactly.
        """
        own = {"average": self._average and self._average.state_dict(), "scale": self._precision.state_dict()}
        state: dict[str, Any] = {"step": self.step_count, "optimizer": self.optimizer.state_dict()}
        state |= {name: value for name, value in own.items() if value is not None}
        return state if self._room.photos is None else {**state, "photos_at_once": self._room.photos}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the trainer that gave `state` stood; raises ArgumentError when it doesn't fit."""
        wanted = ["step", "optimizer"]
        wanted += ["average"] * (self._average is not None) + ["scale"] * (self._precision.name == "fp16")
        if set(state) - {"photos_at_once"} != set(wanted):
            raise ArgumentError(f"this trainer's state holds {' and '.join(wanted)}, not {sorted(state)!r:.200}")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ArgumentError(f"the optimizer's state belongs to another optimizer or model: {error}") from error
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if "scale" in state:
            self._precision.load_state_dict(state["scale"])
        if "photos_at_once" in state:
            self._room.photos = whole("photos_at_once", state["photos_at_once"], 1, 2**31)
        self.step_count = whole("step", state["step"], 0, 2**62)
        self._freeze()


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
