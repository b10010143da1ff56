"""`showtell caption`: files, folders and globs to sentences."""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from .. import journal, storage
from ..bulk import Row, caption_iter
from ..captioner import Captioner
from ..checks import whole
from ..constraints import bind
from ..errors import ArgumentError, NotFoundError, RunError
from ..images import IMAGE_SUFFIXES
from ..progress import bar
from ..search import parse_search, search_to_config
from ..version import __version__
from .common import add_constraints, add_format, add_model, constraints_of, load_model

__all__ = ["add_command", "find_photos"]


def add_command(commands: Any) -> None:
    """Add `caption` to the parser."""
    parser = commands.add_parser(
        "caption",
        help="caption photos",
        description="Caption photos: files, folders (searched through) and globs.",
        epilog="example: showtell caption holiday/ --search beam:3 --output captions.jsonl",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a photo, a folder of photos, or a quoted glob")
    add_model(parser)
    parser.add_argument("--search", metavar="S", help="greedy, beam:3, sample:5, ... (default: the model's own)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="photos at a time (default: 16)")
    parser.add_argument(
        "--output", metavar="F", help="write rows to F, as JSON lines unless --format text; a rerun continues"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace F instead of continuing it")
    add_format(parser)
    add_constraints(parser)
    parser.set_defaults(run=run)


def find_photos(arguments: Sequence[str]) -> list[Path]:
    """The photos that paths, folders and globs name: in the order given, a folder's own in sorted order.

    Raises NotFoundError for a folder without photos or a glob without matches. A path that doesn't exist is kept:
    its row will say so.
    """
    photos: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if not argument:
            raise ArgumentError("an empty PATH names no photo; leave it out, or write . for this folder")
        if os.path.isdir(path):  # noqa: PTH112 - False, not an error, for names that no file can have
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not found:
                raise NotFoundError(f"{argument}: no photos in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
            photos += found
        elif not os.path.exists(path) and glob.has_magic(argument):  # noqa: PTH110
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - absolute patterns too
            files = [Path(p) for p in matches if Path(p).suffix.lower() in IMAGE_SUFFIXES and Path(p).is_file()]
            if not files:
                raise NotFoundError(f"{argument}: no photo matches this pattern")
            photos += files
        else:
            photos.append(path)
    return photos


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    whole("--batch-size", options.batch_size, 1, 4096)
    asked = None if options.search is None else parse_search(options.search)
    constraints = constraints_of(options)
    photos = find_photos(options.paths)
    if options.overwrite and not options.output:
        raise ArgumentError("--overwrite belongs to --output FILE")
    captioner = load_model(options.model, options.device)
    search = asked or captioner.search
    bind(constraints, 1, captioner.vocabulary, search)  # what can't be satisfied is said before any work
    settings: dict[str, Any] = {"search": search, "constraints": constraints, "batch_size": options.batch_size}
    style = options.format or ("jsonl" if options.output else "text")
    failed = 0
    if not options.output:
        for row in caption_iter(captioner, photos, **settings):
            failed += row.error is not None
            if row.error is not None and style == "text":
                print(f"{row.image}: error: {row.error}", file=sys.stderr)
            else:
                print(_line(row, style), flush=True)
        return 1 if failed else 0
    output = Path(options.output)
    identity = {
        "what": "showtell caption",
        "version": __version__,
        "model": _fingerprint(captioner),
        "search": search_to_config(search),
        "constraints": constraints and json.loads(json.dumps(asdict(constraints))),
        "photos": hashlib.sha256("\0".join(map(str, photos)).encode("utf-8", "surrogateescape")).hexdigest(),
        "batch_size": options.batch_size,
        "format": style,
    }
    with journal.said_plainly(output):
        _check_place(output)
        with output.open("ab") as file:
            journal.claim(file, output)
            done = _continue(output, identity, options.batch_size, len(photos), overwrite=options.overwrite)
            if done:
                print(f"{output}: {done} of {len(photos)} rows are there already", file=sys.stderr)
            with bar(len(photos), "captions", unit="photo", initial=done) as progress:
                coming = caption_iter(captioner, photos[done:], start=done, **settings)
                while rows := list(islice(coming, options.batch_size)):
                    text = "".join(_line(row, style) + "\n" for row in rows)
                    file.write(text.encode("utf-8", "surrogateescape"))
                    file.flush()
                    os.fsync(file.fileno())
                    progress.update(len(rows))
    with output.open("rb") as file:
        failed = sum(_is_error(line, style, f"{output}: row {number}") for number, line in enumerate(file, 1))
    print(f"{output}: {len(photos) - failed} captions" + (f", {failed} errors" if failed else ""), file=sys.stderr)
    return 1 if failed else 0


def _line(row: Row, style: str) -> str:
    image = str(row.image)
    if style == "text":
        safe = image.replace("\n", "\\n").replace("\t", "\\t")
        return f"{safe}\t" + (row.caption.text if row.caption else f"error: {row.error}".replace("\n", " "))
    if row.caption is None:
        return _json({"image": image, "error": str(row.error)})
    candidates = [{"caption": c.text, "log_prob": round(c.log_prob, 6)} for c in row.caption.candidates]
    return _json({"image": image, **candidates[0], "candidates": candidates})


def _json(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # A file name that isn't UTF-8 holds lone surrogates: escaped, the row is JSON that every program can read.
    return text if text.isascii() or not re.search("[\ud800-\udfff]", text) else json.dumps(value)


def _is_error(line: bytes, style: str, name: str) -> bool:
    if style == "text":
        return b"\terror: " in line
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise RunError(f"{name} is none that this command wrote; start over with --overwrite, or name another file")
    return "error" in row


def _fingerprint(captioner: Captioner) -> str:
    return storage.fingerprint(**captioner.save_pieces())


def _check_place(output: Path) -> None:
    if output.is_dir():
        raise ArgumentError(f"--output {output} is a folder; name a file")
    if output.exists() and not output.is_file():
        raise ArgumentError(f"--output {output} is no ordinary file; leave --output out to print the captions")
    if not output.parent.is_dir():
        raise NotFoundError(f"--output {output}: the folder {output.parent} doesn't exist; make it first")


def _continue(output: Path, identity: dict[str, Any], batch_size: int, total: int, *, overwrite: bool) -> int:
    """Make the output file, which is there, ready to be appended to, and return how many rows of it stay."""
    beside = output.with_name(output.name + ".run")
    if overwrite:
        os.truncate(output, 0)
        beside.unlink(missing_ok=True)
    if not beside.exists():
        if output.stat().st_size:
            raise RunError(f"{output} exists and no run of showtell began it; name another file or add --overwrite")
        storage.write_file(beside, (json.dumps(identity, indent=2) + "\n").encode())
        return 0
    try:
        before = json.loads(beside.read_text())
        differs = sorted(k for k in identity if before.get(k) != identity[k])
    except (ValueError, AttributeError):
        differs = ["a damaged " + beside.name]
    if differs:
        raise RunError(
            f"{output} was begun by another command (different: {', '.join(differs)}); repeat that command, "
            "name another file, or start over with --overwrite"
        )
    # Keep whole batches only, so that every batch is captioned as in an undisturbed run.
    ends = [0, *_line_ends(output)]
    rows = min(len(ends) - 1, total)
    kept = rows if rows == total else rows // batch_size * batch_size
    os.truncate(output, ends[kept])
    return kept


def _line_ends(path: Path) -> Iterator[int]:
    position = 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            if line.endswith(b"\n"):
                yield position
