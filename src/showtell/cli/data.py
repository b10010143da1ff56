"""`showtell data check`: everything that is wrong with a dataset, before an hour is spent on it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..data import read_dataset
from ..data.records import wordless
from ..vocabulary import Vocabulary
from .common import add_format

__all__ = ["add_command", "add_data_options"]


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """How to read a dataset: the same for `data check` and `train`."""
    parser.add_argument("--images", metavar="DIR", help="the folder of the photos, where it isn't beside the captions")
    parser.add_argument("--image-column", metavar="NAME", help="the column that names the photo (default: guessed)")
    parser.add_argument("--caption-column", metavar="NAME", help="the column of the caption (default: guessed)")


def add_command(commands: Any) -> None:
    """Add `data check` to the parser."""
    parser = commands.add_parser("data", help="look at a dataset", description="Look at a dataset.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="list everything that is wrong with a dataset",
        description="Read a dataset, open every photo, and list every bad row with file and line.",
        epilog="example: showtell data check holiday/captions.csv",
    )
    check.add_argument("data", metavar="DATA", help="a folder, a CSV, JSONL or JSON file")
    add_data_options(check)
    add_format(check)
    check.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    dataset = read_dataset(
        options.data,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    words = Vocabulary.build(["word"], min_count=1)
    problems = [*dataset.problems, *wordless(dataset.records, words).values(), *dataset.check_images()]
    if options.format == "jsonl":
        for problem in problems:
            print(json.dumps({"file": problem.file, "line": problem.line, "message": problem.message}))
    else:
        for note in dataset.notes:
            print(note)
        print(dataset.summary())
        for problem in problems:
            print(problem)
    print(f"{len(problems) or 'no'} problem{'s' * (len(problems) != 1)}", file=sys.stderr)
    return 1 if problems else 0
