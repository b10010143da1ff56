"""`showtell export`: a captioner as ONNX or torch.export programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import load_model

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `export` to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a captioner as ONNX or torch.export programs",
        description="Write a captioner as two programs that run without showtell, one from photo to memory and one for "
        "a step of the decoder, with the vocabulary and a description.",
        epilog="example: showtell export --model runs/mine --output exported --int8",
    )
    parser.add_argument("--model", metavar="M", help="a saved captioner's folder or Hub id (default: the bundled one)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--as", dest="kind", choices=("onnx", "torch"), default="onnx", help="what to write (default: onnx)"
    )
    parser.add_argument("--int8", action="store_true", help="linear layers in 8 bits (onnx)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="most words of a caption (default: its search's, at least 20)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..exporting import export  # torch's exporter takes a while to import

    captioner = load_model(options.model, "cpu")
    export(captioner, options.output, format=options.kind, int8=options.int8, max_length=options.max_length)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {size / 1e6:.1f} MB", file=sys.stderr)
    print(options.output)
    return 0
