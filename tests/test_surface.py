"""What showtell promises to keep (docs/stability.md): names, signatures, commands, errors. Any change shows here.

`python tests/test_surface.py` writes tests/surface.json anew, after a change that is meant; the diff is what a release
note has to say.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import showtell
from showtell import ShowtellError, errors
from showtell.cli import build_parser
from showtell.deprecation import Moved
from showtell.registry import _BUILT_IN
from showtell.storage import FORMAT_VERSION
from showtell.training import list_recipes

FILE = Path(__file__).parent / "surface.json"


def signature(thing: Any) -> str:
    """Parameters with their defaults; what they are annotated with may become wider without breaking anybody."""
    parameters = inspect.signature(thing).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name not in ("self", "cls")]
    return re.sub(" at 0x[0-9a-f]+", "", str(inspect.Signature(bare)))


def members(kind: type) -> dict[str, str]:
    """Public methods with their signatures, and properties, that showtell itself defines."""
    found = {}
    for name, member in inspect.getmembers(kind):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        if name.startswith("_") or not owner.__module__.startswith("showtell"):
            continue
        if isinstance(inspect.getattr_static(kind, name), property):
            found[name] = "property"
        elif isinstance(member, int | str):
            found[name] = repr(member)
        elif callable(member):
            found[name] = signature(member)
    return found


def described(thing: Any) -> Any:
    if isinstance(thing, type) and issubclass(thing, ShowtellError):
        return {"error": [base.__name__ for base in thing.__mro__[1:-1]]}
    if isinstance(thing, type):
        fields = [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
        fields = list(getattr(thing, "_fields", fields))
        own_init = "Protocol" not in [base.__name__ for base in thing.__bases__]
        return {"call": signature(thing) if own_init else None, "fields": fields, "members": members(thing)}
    return signature(thing) if inspect.isfunction(thing) else str(thing) if typing.get_origin(thing) else None


def commands() -> dict[str, dict[str, Any]]:
    """Every command's options: what they are called, what they take and what is left out."""
    found = {}
    for name, parser in _parsers("", build_parser()):
        found[name] = {
            " ".join(action.option_strings) or action.dest: [
                type(action).__name__,
                action.required,
                str(action.type),
                str(action.nargs),
                str(action.default),
                _choices(action),
            ]
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        }
    return found


def _parsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, one in action.choices.items():
                yield from _parsers(f"{name} {word}".strip(), one)


def _choices(action: argparse.Action) -> Any:
    return None if action.choices is None else [str(each) for each in action.choices]


def surface() -> dict[str, Any]:
    return {
        "names": {name: described(getattr(showtell, name)) for name in sorted(showtell.__all__)},
        "errors": {name: described(getattr(errors, name)) for name in sorted(errors.__all__)},
        "commands": commands(),
        "components": {kind: sorted(names) for kind, names in _BUILT_IN.items()},
        "recipes": sorted(list_recipes()),
        "format_version": FORMAT_VERSION,
    }


def test_the_surface_is_the_one_that_is_written_down() -> None:
    written, found = json.loads(FILE.read_bytes()), json.loads(json.dumps(surface()))
    for part in written:
        assert found[part] == written[part], f"{part} changed; if that is meant: python tests/test_surface.py"
    assert found.keys() == written.keys()


def test_a_changed_surface_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = surface()
    monkeypatch.setattr(showtell, "load_image", lambda source, spec, extra: None)
    monkeypatch.setattr(showtell.Captioner, "caption", lambda self, image: None)
    after = surface()
    changed = {name for name in before["names"] if before["names"][name] != after["names"][name]}
    assert changed == {"Captioner", "load_image"}


def test_a_name_that_moved_works_with_a_warning_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Describer'"):
        showtell.Describer  # noqa: B018
    monkeypatch.setitem(showtell._MOVED, "Describer", Moved("Captioner", "0.2", "0.4"))
    with pytest.warns(FutureWarning, match=r"showtell\.Captioner since 0\.2 and will be gone in 0\.4") as said:
        assert showtell.Describer is showtell.Captioner
    assert said[0].filename == __file__
    with pytest.warns(FutureWarning):
        from showtell import Describer
    assert Describer is showtell.Captioner
    assert "Describer" not in showtell.__all__


def test_names_are_gone_when_they_were_said_to_be() -> None:
    now = tuple(map(int, showtell.__version__.split(".")[:2]))
    for moved in showtell._MOVED.values():
        since, gone = (tuple(map(int, version.split("."))) for version in (moved.since, moved.gone))
        assert gone > now
        assert gone >= (since[0], since[1] + 2) or gone[0] > since[0]


if __name__ == "__main__":
    with warnings.catch_warnings():
        FILE.write_text(json.dumps(surface(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
