"""Files that a command writes at its end: a place that can't be written to is refused before the work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from .. import journal
from ..errors import ArgumentError, NotFoundError, RunError

__all__ = ["check_target"]

_HEAD = 4096  # bytes of an existing file that say what it is


def check_target(option: str, text: str, *, ours: Callable[[bytes], bool], what: str) -> Path:
    """The path that an option names, after a trial that leaves nothing behind.

    ours: whether the first bytes of a file that is there are those of a file of the kind, which may be replaced;
    what: the kind's name. Raises ArgumentError, NotFoundError or RunError for a folder, a missing folder, another
    program's file and a place that can't be written to.
    """
    if not text or "\0" in text:
        raise ArgumentError(f"{option} {text!r:.100} names no file")
    path = Path(text)
    with journal.said_plainly(path):
        if path.is_dir():
            raise ArgumentError(f"{option} {path} is a folder; name a file")
        if os.path.lexists(path) and not path.is_file():
            raise ArgumentError(f"{option} {path} is no ordinary file; name another one")
        if not path.parent.is_dir():
            raise NotFoundError(f"{option} {path}: the folder {path.parent} doesn't exist; make it first")
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                if not ours(file.read(_HEAD)):
                    raise RunError(f"{option} {path}: this file exists and is no {what}; name another file")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".showtell-tmp"):
            return path
