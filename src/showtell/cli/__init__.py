"""The command line: `showtell caption | train | evaluate | doctor | import | export | push | recipes | info | data`."""

from __future__ import annotations

import argparse
import codecs
import io
import sys
from collections.abc import Sequence

from ..errors import ShowtellError
from ..version import __version__
from . import caption, data, doctor, evaluate, export, importing, info, push, recipes, train

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; each has a `--help` with an example."""
    parser = argparse.ArgumentParser(
        prog="showtell",
        description="Image captioning: photo in, sentence out.",
        epilog="example: showtell caption photo.jpg",
    )
    parser.add_argument("--version", action="version", version=f"showtell {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (caption, train, evaluate, doctor, importing, export, push, recipes, info, data):
        module.add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 only if everything worked, 1 if some of it failed, 2 for a call that can't work."""
    options = build_parser().parse_args(arguments)
    _say_any_name()
    try:
        code: int = options.run(options)
        print(end="", flush=True)  # unlike sys.stdout.flush(), no error where stdout is closed
        return code
    except ShowtellError as error:
        print(f"showtell: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader went away (as in `| head`); point stdout elsewhere so that the interpreter's exit is quiet.
        sys.stdout = open("/dev/null", "w") if sys.platform != "win32" else open("nul", "w")  # noqa: SIM115, PTH123
        return 1
    except KeyboardInterrupt:
        continues = options.command in ("caption", "train") and options.output
        goes_on = "; the same command continues where this one ended" if continues else ""
        print(f"showtell: stopped{goes_on}", file=sys.stderr)
        return 130
    except OSError as error:  # a disk that fails, a folder that may not be listed: no bug, so no traceback
        print(f"showtell: {error}", file=sys.stderr)
        return 2


def _say_any_name() -> None:
    """Let file names of any bytes, and words that the terminal can't show, be printed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
