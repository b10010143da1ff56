"""What several commands share."""

from __future__ import annotations

import argparse

import torch

from ..captioner import Captioner
from ..constraints import Constraints
from ..devices import usable_device
from ..ranks import local_device

__all__ = ["add_constraints", "add_format", "add_model", "constraints_of", "device_of", "load_model"]


def add_format(parser: argparse.ArgumentParser) -> None:
    """`--format text|jsonl`."""
    parser.add_argument("--format", choices=("text", "jsonl"), help="how to print (default: text)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--device`."""
    parser.add_argument("--model", metavar="M", help="a saved captioner's folder or Hub id (default: the bundled one)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def add_constraints(parser: argparse.ArgumentParser) -> None:
    """What every caption must and must not say."""
    wishes = parser.add_argument_group("what captions must and must not say")
    wishes.add_argument("--min-length", type=int, default=0, metavar="N", help="at least N words")
    wishes.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="no run of N words twice")
    wishes.add_argument("--no-repeat-word", action="store_true", help="no word twice in a row")
    wishes.add_argument("--no-bad-endings", action="store_true", help='no caption ends with "a", "on the", ...')
    wishes.add_argument(
        "--forbid", action="append", default=[], metavar="WORD", help="never say WORD; give it again for more"
    )
    wishes.add_argument("--prefix", default="", metavar="TEXT", help='begin every caption so, with "a photo of" say')
    wishes.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="WORD",
        help='say WORD, or one of "dog|puppy"; give it again for more; needs --search beam:N',
    )


def constraints_of(options: argparse.Namespace) -> Constraints | None:
    """What `add_constraints` read, None where nothing is asked."""
    force = [tuple(each.split("|")) if "|" in each else each for each in options.force]
    found = Constraints(
        min_length=options.min_length,
        no_repeat_ngram=options.no_repeat_ngram,
        no_repeat_word=options.no_repeat_word,
        no_bad_endings=options.no_bad_endings,
        forbid=options.forbid,
        prefix=options.prefix,
        force=force,
    )
    return None if found == Constraints() else found


def device_of(device: str) -> torch.device:
    """What `--device` names, "auto" too; where several processes share a machine, this one's."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device("--device", local_device("--device", device))


def load_model(model: str | None, device: str) -> Captioner:
    """The captioner that `--model` and `--device` name."""
    where = device_of(device)
    if model is None:
        return Captioner.default(device=where)
    return Captioner.from_pretrained(model, device=where)
