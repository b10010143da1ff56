"""Text files of people's datasets: UTF-8 with or without a byte order mark, any line ends, bad bytes kept for later."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError

__all__ = ["read_json", "read_lines", "read_text"]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; bytes that aren't UTF-8 become lone surrogates, which `assemble` reports by row.

    Raises DataError for UTF-16, for files that aren't text, and for those that can't be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8 (in Excel: 'CSV UTF-8')")
    if b"\0" in data[:4096]:
        raise DataError(f"{path} isn't UTF-8 text (it holds zero bytes); save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends; only real line ends split, not form feeds and the like."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON file; raises DataError with the line when it is broken."""
    try:
        return json.loads(read_text(path), object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}; write the file anew") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}; write the file anew") from error
