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


def check_folder(folder: Path) -> Path:
    """A folder of this machine: a Hub id would be fetched and pushed again."""
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}; give that of a saved captioner")
    return folder


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    captioner = Captioner.from_pretrained(check_folder(options.folder))  # whole, and nobody else's model
    address = captioner.push_to_hub(
        options.repository,
        private=options.private,
        revision=options.revision,
        tag=options.tag,
        commit_message=f"Upload {options.folder.resolve().name} with showtell",
    )
    print(address)
    return 0
