"""`showtell import`: a tutorial's checkpoint becomes a saved captioner."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..hub import model_card
from ..importing import import_checkpoint
from ..storage import check_place

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `import` to the parser."""
    parser = commands.add_parser(
        "import",
        help="turn a tutorial's checkpoint into a saved captioner",
        description="Turn a checkpoint of the well-known tutorials into a folder that showtell opens. Nothing in the "
        "files is run: pickles are read by a reader that knows no classes.",
        epilog="examples: showtell import BEST_checkpoint.pth.tar --words WORDMAP.json --output mine; "
        "showtell import encoder-5-3000.pkl decoder-5-3000.pkl --words vocab.pkl --output mine",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the checkpoint, or encoder and decoder")
    parser.add_argument("--words", type=Path, required=True, metavar="FILE", help="its vocabulary, JSON or pickled")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to save the captioner")
    parser.add_argument(
        "--weights-dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="float16 halves the size (default: float32, the same captions)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if not str(options.output).strip("."):
        raise ArgumentError("--output names no folder; give a new one")
    check_place(options.output)
    captioner = import_checkpoint(options.files, options.words)
    card = model_card(
        title=options.output.resolve().name,
        data=f"Imported from {' and '.join(file.name for file in options.files)}; what it was trained on isn't known.",
    )
    captioner.save_pretrained(options.output, weights_dtype=options.weights_dtype, card=card)
    print(
        f"{options.output}: {type(captioner.encoder).__name__} {captioner.encoder.config().get('backbone', '')}, "
        f"{type(captioner.decoder).__name__}, {len(captioner.vocabulary):,} words",
        file=sys.stderr,
    )
    print(options.output)
    return 0
