"""`showtell info`: what a saved captioner is."""

from __future__ import annotations

import argparse
import json
from typing import Any

from torch import nn

from ..search import search_to_config
from .common import add_format, load_model

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `info` to the parser."""
    parser = commands.add_parser(
        "info",
        help="say what a saved captioner is",
        description="Load a captioner and say what it is made of.",
        epilog="example: showtell info runs/mine",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder or Hub id (default: the bundled one)")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    captioner = load_model(options.model, "cpu")
    pieces = captioner.save_pieces()
    parameters = {name: _count(getattr(captioner, name)) for name in ("encoder", "decoder")}
    size = sum(t.numel() * t.element_size() for t in pieces["tensors"].values())
    facts = {
        "encoder": pieces["config"]["encoder"],
        "decoder": pieces["config"]["decoder"],
        "weights_dtype": pieces["config"]["weights_dtype"],
        "parameters": parameters,
        "weights_bytes": size,
        "vocabulary": len(captioner.vocabulary),
        "generation": search_to_config(captioner.search),
        "image": captioner.encoder.image_spec.to_config(),
    }
    if options.format == "jsonl":
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    for kind in ("encoder", "decoder"):
        part = facts[kind]
        print(f"{kind:12}{part['name'] or part['class']}, {parameters[kind] / 1e6:.2f} M parameters")
        for key, value in part["config"].items():
            print(f"{'':14}{key} = {json.dumps(value)}")
    print(f"{'vocabulary':12}{facts['vocabulary']:,} words")
    print(f"{'weights':12}{facts['weights_dtype']}, {size / 1e6:.1f} MB")
    print(f"{'images':12}{json.dumps(facts['image'])}")
    print(f"{'search':12}{json.dumps(facts['generation'])}")
    return 0


def _count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())
