"""`showtell train`: a folder of photos and captions to a captioner."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from dataclasses import asdict
from typing import Any

from ..errors import ArgumentError
from ..ranks import place
from ..training import train
from .common import add_format
from .data import add_data_options

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `train` to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a captioner on your own photos",
        description="Train a captioner on photos with captions. The same command again continues where it stopped.",
        epilog="example: showtell train --data holiday/captions.csv --output runs/holiday",
    )
    parser.add_argument("--data", required=True, metavar="D", help="a folder, a CSV, JSONL or JSON file")
    add_data_options(parser)
    parser.add_argument("--output", required=True, metavar="O", help="the folder that becomes the captioner")
    parser.add_argument("--recipe", default="default", metavar="R", help="a recipe's name or a TOML file")
    parser.add_argument(
        "--init",
        default="default",
        metavar="M",
        help='the captioner to start from: a folder, a Hub id, "default" (the bundled one) or "none" (from scratch)',
    )
    parser.add_argument(
        "--beside", metavar="M", help="a captioner whose encoder is put beside that of --init, to look with both"
    )
    parser.add_argument(
        "--encoder",
        metavar="E",
        help="with --init none: efficientnet-lite0, torchvision:resnet50, timm:NAME, ... (default: the recipe's)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the recipe, as in --set epochs=3; may be repeated",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out instead of stopping")
    parser.add_argument("--restart", action="store_true", help="throw away what an earlier run left in O")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", metavar="DEV", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        choices=("tensorboard", "wandb"),
        metavar="W",
        help="also log to tensorboard, wandb or both (extras of the same names)",
    )
    parser.add_argument("--data-license", metavar="L", help='licence of the photos and captions, such as "CC BY 4.0"')
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    result = train(
        options.data,
        options.output,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
        recipe=options.recipe,
        init=None if options.init == "none" else options.init,
        beside=options.beside,
        encoder=options.encoder,
        overrides=dict(map(_setting, options.set)),
        skip_bad=options.skip_bad,
        restart=options.restart,
        threads=options.threads,
        device=options.device,
        log_to=options.log_to,
        data_license=options.data_license,
        say=say,
    )
    if place().rank:
        return 0  # the first process says it for all
    if options.format == "jsonl":
        print(json.dumps({**asdict(result), "output": str(result.output)}))
    else:
        print(result.output)
    return 0


def _setting(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ArgumentError(f"--set {text!r}: write KEY=VALUE, as in --set epochs=3")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except (ValueError, RecursionError):  # the latter for lists in lists in lists
        return key.strip(), value
