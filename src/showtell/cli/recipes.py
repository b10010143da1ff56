"""`showtell recipes`: the recipes that come with showtell, and what stands in one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..training import list_recipes, load_recipe, recipe_text
from .common import add_format

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `recipes` to the parser."""
    parser = commands.add_parser(
        "recipes",
        help="list the recipes for training, or print one",
        description="List the recipes that `train --recipe` knows by name, or print the file of one.",
        epilog="example: showtell recipes show-tell-256 > mine.toml",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe's file (default: list all)")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    known = list_recipes()
    as_rows = options.format == "jsonl"
    if options.name is not None:
        text = recipe_text(options.name)
        if as_rows:
            values = load_recipe(options.name).values()
            print(json.dumps({"name": options.name, "about": known[options.name], "file": text, "settings": values}))
        else:
            print(text, end="")
        return 0
    width = max(map(len, known))
    for name, about in known.items():
        print(json.dumps({"name": name, "about": about}) if as_rows else f"{name:{width}}  {about}")
    return 0
