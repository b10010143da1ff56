"""Progress bars: the only importer of tqdm."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["bar", "duration"]


def bar(total: int, description: str, *, unit: str = "it", initial: int = 0, show: bool | None = None) -> Any:
    """A progress bar on standard error; silent when standard error is no terminal, unless `show` is True.

    Example:
        >>> with bar(3, "counting", show=False) as progress:
        ...     for _ in range(3):
        ...         _ = progress.update()

    The result has tqdm's `update(n)`, `set_postfix_str(text)`, `write(text, file)` and `close()`.
    """
    shown = sys.stderr.isatty() if show is None else show
    return tqdm(total=total, desc=description, unit=unit, initial=initial, disable=not shown, file=sys.stderr)


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
