"""What a person sees of a training between two evaluations, and the row of numbers of every so many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ..progress import SILENCE, bar, duration
from .trainer import StepReport

__all__ = ["Meter"]


class Meter:
    """Follows the steps of one session: a progress bar on a terminal, elsewhere a line a minute.

    Example:
        >>> heard = []
        >>> window = {}
        >>> meter = Meter(4, window, every=2, say=heard.append, show=False)
        >>> report = StepReport(1, 3.0, {"words": 3.0}, 0.5, 1e-3, 100, 0.5, 0.1)
        >>> meter.step(report) is None
        True
        >>> row = meter.step(StepReport(2, 2.0, {"words": 2.0}, 1.5, 1e-3, 300, 0.5, 0.3))
        >>> row["train_loss"], row["grad_norm"], row["tokens_per_second"], row["data_share"]
        (2.5, 1.0, 400.0, 0.2)

    Args:
        total: steps in all.
        window: sums since the last row; they belong to the run's progress, so that a continued run has the same rows.
        every: steps a row; 0: no rows.
        say: called with each line.
        show: the bar; None: where standard error is a terminal.
        start: steps that are done already.
        clock: the time in seconds.
    """

    def __init__(
        self,
        total: int,
        window: dict[str, float],
        *,
        every: int,
        say: Callable[[str], None],
        show: bool | None,
        start: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the bar."""
        self._total, self._window, self._every, self._say, self._clock = total, window, every, say, clock
        self._bar = bar(total, "training", unit="step", initial=start, show=show)
        self._silent = bool(self._bar.disable)
        self._first = self._done = start
        self._began = self._spoke = clock()
        self._waited = self._worked = 0.0

    def step(self, report: StepReport) -> dict[str, Any] | None:
        """Take in a step; returns the row of the last `every` steps when one is due.

        A row has the mean loss, its terms where there are several, what the objective notes, the mean length of the
        gradient before clipping, the learning rate, tokens a second and the share of time spent waiting for data.
        """
        self._done = report.step
        self._waited += report.seconds * report.data_share
        self._worked += report.seconds
        terms = {f"term_{name}": value for name, value in report.terms.items()} if len(report.terms) > 1 else {}
        sums = {
            "steps": 1,
            "train_loss": report.loss,
            **terms,
            **{f"train_{name}": value for name, value in report.notes.items()},
            **({"grad_norm": report.grad_norm} if math.isfinite(report.grad_norm) else {"skipped": 1}),
            "tokens": report.tokens,
            "seconds": report.seconds,
            "waited": report.seconds * report.data_share,
        }
        for name, value in sums.items():
            self._window[name] = self._window.get(name, 0) + value
        self._bar.set_postfix_str(f"{_learnt(report)}, data {self.data_share:.0%}", refresh=False)
        self._bar.update()
        self._break_silence(report)
        if not self._every or report.step % self._every:
            return None
        return {"kind": "steps", "step": report.step, **self._means(), "learning_rate": report.learning_rate}

    def _means(self) -> dict[str, float]:
        """The row's numbers; the window begins anew."""
        sums = dict(self._window)
        self._window.clear()
        steps, tokens, seconds, waited = (sums.pop(name) for name in ("steps", "tokens", "seconds", "waited"))
        counted = steps - sums.pop("skipped", 0)  # a float16 step that was skipped has no gradient to tell of
        means = {name: value / (counted if name == "grad_norm" else steps) for name, value in sums.items()}
        means["tokens_per_second"] = round(tokens / seconds, 1) if seconds > 0 else 0.0
        means["data_share"] = round(waited / seconds, 4) if seconds > 0 else 0.0
        return means

    def _break_silence(self, report: StepReport) -> None:
        if self._silent and self._clock() - self._spoke >= SILENCE:
            self.tell(
                f"step {report.step:,} of {self._total:,}: {_learnt(report)}, "
                f"data {self.data_share:.0%} of the time{self.left()}"
            )

    @property
    def data_share(self) -> float:
        """The part of this session's steps spent waiting for data, 0..1."""
        return self._waited / self._worked if self._worked > 0 else 0.0

    def left(self) -> str:
        """How long it will take at most, for the end of a line; evaluations so far count."""
        if self._done == self._first or self._done >= self._total:
            return ""
        each = (self._clock() - self._began) / (self._done - self._first)
        return f"; at most {duration(each * (self._total - self._done))} left"

    def tell(self, text: str) -> None:
        """Say a line above the bar."""
        self._bar.clear()
        self._say(text)
        self._bar.refresh()
        self._spoke = self._clock()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()


def _learnt(report: StepReport) -> str:
    """What to look at: the loss, or the reward where a score is learnt, whose loss hovers around 0."""
    return f"reward {report.notes['reward']:.3f}" if "reward" in report.notes else f"loss {report.loss:.3f}"
