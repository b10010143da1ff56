"""`showtell push`: a saved captioner to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..captioner import Captioner
from ..errors import NotFoundError

__all__ = ["add_command"]


def add_command(commands: Any) -> None:
    """Add `push` to the parser."""
    parser = commands.add_parser(
        "push",
        help="upload a saved captioner to the Hugging Face Hub",
        description="Upload config.json, tokenizer.json, model.safetensors and README.md, nothing else. Who you are is "
        "what `hf auth login` or HF_TOKEN says.",
        epilog="example: showtell push runs/holiday user/holiday --private --tag v1.0",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a saved captioner")
    parser.add_argument("repository", metavar="USER/NAME", help="where to; made if absent")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to upload to (default: main)")
    parser.add_argument("--tag", help="name this upload for good, to load it by")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if not options.folder.is_dir():  # a Hub id would be fetched and pushed again
        raise NotFoundError(f"there is no folder {options.folder}; give that of a saved captioner")
    captioner = Captioner.from_pretrained(options.folder)  # whole, and nobody else's model
    address = captioner.push_to_hub(
        options.repository,
        private=options.private,
        revision=options.revision,
        tag=options.tag,
        commit_message=f"Upload {options.folder.resolve().name} with showtell",
    )
    print(address)
    return 0
