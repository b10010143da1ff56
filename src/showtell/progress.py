"""Progress bars: the only importer of tqdm."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self

from tqdm import tqdm

__all__ = ["SILENCE", "bar", "duration"]

SILENCE = 60.0
"""Seconds between two lines where there is no progress bar."""


def bar(
    total: int,
    description: str,
    *,
    unit: str = "it",
    initial: int = 0,
    show: bool | None = None,
    say: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Any:
    """A progress bar on standard error; when that is no terminal, unless `show` is True, a line a minute to `say`.

    Example:
        >>> with bar(3, "counting", show=False, say=print, clock=iter((0.0, 30.0, 90.0, 100.0)).__next__) as progress:
        ...     for _ in range(3):
        ...         _ = progress.update()
        counting: 2 of 3, 45 s left

    Silent then without `say`, with tqdm's `update(n)`, `set_postfix_str(text)`, `write(text, file)` and `close()`.
    """
    shown = sys.stderr.isatty() if show is None else show
    if shown or say is None:
        return tqdm(total=total, desc=description, unit=unit, initial=initial, disable=not shown, file=sys.stderr)
    return _Lines(total, description, say, clock)


class _Lines:
    """A bar's stand-in that says a line a minute."""

    def __init__(self, total: int, description: str, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._total, self._description, self._say, self._clock = total, description, say, clock
        self._done = 0
        self._began = self._spoke = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int = 1) -> None:
        """Take in that n more are done."""
        self._done += n
        now = self._clock()
        if now - self._spoke >= SILENCE and self._done < self._total:
            left = duration((now - self._began) / self._done * (self._total - self._done))
            self._say(f"{self._description}: {self._done:,} of {self._total:,}, {left} left")
            self._spoke = now


def duration(seconds: float) -> str:
    """A time span as people say it.

    Example:
        >>> duration(8), duration(425), duration(7_500), duration(300_000)
        ('8 s', '7 min', '2 h 05 min', '3 days 11 h')
    """
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} days {hours % 24} h"
