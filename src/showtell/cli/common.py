"""What several commands share."""

from __future__ import annotations

import argparse

import torch

from ..captioner import Captioner
from ..devices import usable_device

__all__ = ["add_format", "add_model", "load_model"]


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format text|jsonl`."""
    parser.add_argument("--format", choices=("text", "jsonl"), help="how to print (default: text)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--device`."""
    parser.add_argument("--model", metavar="M", help="a saved captioner's folder or Hub id (default: the bundled one)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def load_model(model: str | None, device: str) -> Captioner:
    """The captioner that `--model` and `--device` name."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = usable_device("--device", device)
    if model is None:
        return Captioner.default(device=where)
    return Captioner.from_pretrained(model, device=where)
