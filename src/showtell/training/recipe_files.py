"""Recipes as files: small TOML documents, those that come with showtell and your own."""

from __future__ import annotations

import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, ComponentError, NotFoundError, ShowtellError
from .recipe import HOME, PREFIXED, SECTIONS, Recipe, nearest

__all__ = ["list_recipes", "load_recipe", "recipe_text"]

_MOST_BYTES = 2**20


def list_recipes() -> dict[str, str]:
    """The recipes that come with showtell: name -> what its file says first.

    Example:
        >>> list_recipes()["tiny"]
        'A minute on a laptop: to see that data and settings work.'
    """
    folder = files(__package__).joinpath("recipes")
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            lines = entry.read_text(encoding="utf-8").splitlines()
            found[entry.name.removesuffix(".toml")] = lines[0].lstrip("# ") if lines else ""
    return found


def load_recipe(source: str | os.PathLike[str] | Recipe = "default") -> Recipe:
    """A recipe by name, or from a TOML file of your own; what it doesn't say is as in the default recipe.

    Example:
        >>> load_recipe("tiny").hidden_dim
        128

    A text that ends in ".toml" or holds a slash is a file.

    Raises:
        ComponentError: no recipe of that name.
        NotFoundError: no such file.
        ArgumentError: not TOML, an unknown section or setting (the nearest is named), a value out of its range.
    """
    if isinstance(source, Recipe):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError(f"a recipe is a name, a TOML file or a Recipe, not {source!r:.100}")
    default = Recipe(**_settings(recipe_text("default"), "recipe default"))
    name = os.fspath(source)
    if not isinstance(source, str) or name.endswith(".toml") or "/" in name or os.sep in name:
        path = Path(name)
        text, where = _read(path, name), str(path)
    else:
        text, where = recipe_text(name), f"recipe {name}"
    try:
        return default.changed(_settings(text, where))
    except ShowtellError as error:
        raise ArgumentError(error.args[0] if where in str(error) else f"{where}: {error}") from error


def recipe_text(name: str) -> str:
    """The file of a recipe that comes with showtell.

    Example:
        >>> print(recipe_text("tiny").splitlines()[2])
        [decoder]

    Raises ComponentError when there is none of that name.
    """
    known = list_recipes()
    if name not in known:
        raise ComponentError(
            f"no recipe {name!r:.100}{nearest(name, known)}; there are {', '.join(known)}, or pass the path of a "
            ".toml file"
        )
    return files(__package__).joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def _read(path: Path, name: str) -> str:
    """The text of a recipe's file, with or without the mark that some editors put at its start."""
    if not os.path.isfile(path):  # noqa: PTH113 - False, not an error, for names that no file can have
        raise NotFoundError(f"no recipe file {name!r:.300}")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"{path} can't be read: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise ArgumentError(f"{path} is longer than {_MOST_BYTES:,} bytes; a recipe has a hundred lines")
    return data.decode("utf-8-sig", errors="replace")


def _settings(text: str, where: str) -> dict[str, Any]:
    """Flatten the sections, each key in its own one."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise ArgumentError(f"{where}: not TOML: {error!s:.200}") from error
    settings: dict[str, Any] = {}
    for section, values in document.items():
        if section not in SECTIONS:
            hint = f"; it belongs in [{HOME[section]}]" if section in HOME else nearest(section, SECTIONS)
            raise ArgumentError(f"{where}: a recipe has no section [{section:.100}]{hint}")
        if not isinstance(values, dict):
            raise ArgumentError(
                f"{where}: {section} = {values!r:.100} stands outside a section; "
                f"put it under [{HOME.get(section, section)}]"
            )
        for short, value in values.items():
            key = f"{section}_{short}" if section in PREFIXED else short
            if key not in HOME:
                known = [k.removeprefix(f"{section}_") for k in SECTIONS[section]] if section in PREFIXED else HOME
                raise ArgumentError(f"{where}: [{section}] has no setting {short!r:.100}{nearest(short, known)}")
            if HOME[key] != section:
                raise ArgumentError(f"{where}: {key} belongs in [{HOME[key]}], not in [{section}]")
            settings[key] = value
    return settings
