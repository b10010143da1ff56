"""`showtell doctor`: what is wrong with a captioner or its data."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..data import read_dataset
from ..doctor import diagnose
from ..doctor.diagnose import PHOTOS
from ..search import parse_search
from .common import add_format, add_model, load_model
from .data import add_data_options

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `doctor` to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong with a captioner or its data",
        description="Show a captioner some photos whose captions are known, and say what is wrong with it or with the "
        "data. "
        "The exit code is 1 when something was found.",
        epilog="example: showtell doctor --model runs/holiday --data holiday",
    )
    add_model(parser)
    parser.add_argument("--data", required=True, metavar="D", help="a folder, a CSV, JSONL or JSON file")
    add_data_options(parser)
    parser.add_argument("--split", metavar="S", help="train, val or test (default: val, else test, else train)")
    parser.add_argument(
        "--photos", type=int, default=PHOTOS, metavar="N", help=f"photos of each split to look at (default: {PHOTOS})"
    )
    parser.add_argument("--search", metavar="S", help="greedy, beam:3, ... (default: the model's own)")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    search = None if options.search is None else parse_search(options.search)
    captioner = load_model(options.model, options.device)
    dataset = read_dataset(
        options.data,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    diagnosis = diagnose(captioner, dataset, split=options.split, photos=options.photos, search=search)
    if options.format == "jsonl":
        for row in diagnosis.to_rows():
            print(json.dumps(row))
    else:
        for note in dataset.notes:
            print(note)
        print(diagnosis)
    return 0 if diagnosis.healthy else 1
