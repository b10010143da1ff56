"""The training loop: a generator of steps that the caller logs, evaluates and stops."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from ..checks import flag, number, whole
from ..data import prefetched
from ..errors import ArgumentError, RunError
from ..protocols import move
from ..ranks import ALONE, Ranks
from .average import WeightAverage
from .objectives import Objective, at_step
from .precision import Precision
from .reports import BatchSource, Pulled, StepReport, Sums, added
from .room import Room, agree, norm_statistics, out_of_memory, put_back

__all__ = ["BatchSource", "StepReport", "Trainer"]


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

    With `ranks` the processes of a group share each step: every one computes its own photos of each micro-batch
    (`Shard`) and gradients are added up, so it is the step of a single process, with the same two exceptions.

    Args:
        captioner: the model; what is trained is what requires a gradient.
        objective: a loss in terms, `CrossEntropy()` for instance.
        optimizer: over the captioner's parameters; its learning rates are the base of the schedule.
        schedule: step (from 0) -> factor of the learning rates; default: always 1.
        precision: "fp32", or "bf16" for bfloat16 autocast (float32 on a CPU that lacks it), or "fp16" for float16
            autocast with a scaled loss: a step whose gradients overflow is skipped, counted, and the scale halved.
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
        ranks: the processes that share each step; all must have equal captioners and settings.

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
        ranks: Ranks = ALONE,
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
        self._ranks = ranks
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
                pulled = self._pull(stream)
                sums, norm = self._step(pulled)
                seconds = time.perf_counter() - started
                yield StepReport(
                    step=self.step_count,
                    loss=sums.loss,
                    terms=sums.terms,
                    grad_norm=norm,
                    learning_rate=float(self.optimizer.param_groups[0]["lr"]),
                    tokens=pulled.tokens,
                    seconds=seconds,
                    data_share=pulled.waited / seconds if seconds > 0 else 0.0,
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

    def _pull(self, stream: Iterator[tuple[Any, float]]) -> Pulled:
        """The next step's micro-batches."""
        micro: list[Any] = []

        def own() -> tuple[float, dict[str, float], int]:
            pulled = list(islice(stream, self.accumulate))
            micro.extend(batch for batch, _ in pulled if batch is not None)
            tokens = sum(int((batch.weights > 0).sum()) for batch in micro)
            return sum(seconds for _, seconds in pulled), added(map(self.objective.weights, micro)), tokens

        found = self._ranks.every(own)
        waited = max(seconds for seconds, _, _ in found)
        totals = added(weights for _, weights, _ in found)
        self._check_totals(totals)
        return Pulled(micro, waited, totals, sum(tokens for _, _, tokens in found))

    def _step(self, pulled: Pulled) -> tuple[Sums, float]:
        """One optimizer step over all micro-batches: its terms and notes, the gradient's length before clipping."""
        factor = 1.0 if self.schedule is None else self.schedule(self.step_count)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor
        if self.step_count in self._late:
            self._freeze()
        self._set_modes()
        statistics = norm_statistics(module for module, training in self._modes if training)
        while (sums := self._gradients(pulled)) is None:
            put_back(statistics)
        if self._ranks.count > 1:
            agree(self._ranks, statistics, sum(len(batch.tokens) for batch in pulled.micro))
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

    def _gradients(self, pulled: Pulled) -> Sums | None:
        """Add up the gradients of a step; None when memory ran out somewhere and there is less to do at a time."""

        def own() -> tuple[Sums | None, int | None, list[bool]]:
            sums = self._own_gradients(pulled)
            return sums, self._room.photos, [p.grad is not None for p in self._parameters]

        found = self._ranks.every(own)
        self._room.photos = min((photos for _, photos, _ in found if photos is not None), default=None)
        sums = [each for each, _, _ in found if each is not None]
        if len(sums) < len(found):
            self.optimizer.zero_grad(set_to_none=True)
            return None
        gradients = []
        for parameter, known in zip(self._parameters, zip(*(flags for _, _, flags in found), strict=True), strict=True):
            if any(known):  # here or elsewhere; one that is known nowhere stays None, as the optimizer then skips it
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        self._ranks.add_up(gradients)
        return Sums(added(each.terms for each in sums), added(each.notes for each in sums))

    def _own_gradients(self, pulled: Pulled) -> Sums | None:
        """This process's part of the gradients; None when memory ran out."""
        device = self._precision.device
        objective = at_step(self.objective, self.step_count, self.seed)
        sums = Sums({}, {})
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with _seeded(device, self.seed, self.step_count, self._ranks.rank):
                for batch in pulled.micro:
                    for part in self._room.parts(batch):
                        self._add(objective, part, pulled.totals, sums)
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

    def _add(self, objective: Objective, batch: Any, totals: dict[str, float], sums: Sums) -> None:
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

    def _check_totals(self, totals: dict[str, float]) -> None:
        """Each term's total weight over the step is what its sums are divided by."""
        empty = [name for name, total in totals.items() if not total > 0]
        if empty:
            raise RunError(
                f"step {self.step_count + 1}: the batches hold no word to learn from ({', '.join(empty)} has weight "
                "0 in all of them); look at the captions of the data"
            )

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
def _seeded(device: torch.device, seed: int, step: int, rank: int) -> Iterator[None]:
    """Random numbers as a function of (seed, step, rank); afterwards the generators stand where they stood."""
    text = f"showtell {seed} {step} {rank}" if rank else f"showtell {seed} {step}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(value)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
