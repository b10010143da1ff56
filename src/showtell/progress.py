"""Progress bars: the only importer of tqdm."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["bar"]


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
