"""What a run was made from: its data by name and hash, whose licences it lies under, and the machine it runs on."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..captioner import Captioner
from ..data import Record
from ..data.gather import is_file
from ..encoders.licences import weights_licence
from ..version import __version__
from .assemble import Init
from .recipe import Recipe

__all__ = ["About", "DataFile", "about_run", "environment", "without_folders"]

_MOST_FILES = 8
_UNKNOWN = "not known"
_BESIDE = ", with the encoder of one more beside its own"
_ALSO = {"weights of the encoder beside": "as of the captioner it came from"}
_HOLDS = re.compile(r"^---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class DataFile:
    """A file that captions were read from: its name without folders, the photos it gave, its SHA-256 if at hand."""

    name: str
    photos: int
    sha256: str | None


@dataclass(frozen=True)
class About:
    """What a run was made from, without a path of the machine.

    story: one sentence. files: where captions were read, at most the first 8 of `file_count`. fingerprint: SHA-256 over
    all captions and the photos' names and sizes. counts: split -> (photos, captions), as used. licences: of what ->
    which. license: what the Hub should show, where the captioner that the run began with says so and is the only one.
    """

    story: str
    files: tuple[DataFile, ...]
    file_count: int
    fingerprint: str
    counts: Mapping[str, tuple[int, int]]
    licences: Mapping[str, str]
    license: str | None


def about_run(
    data: Any,
    fingerprint: str,
    training: Sequence[Record],
    validating: Sequence[Record],
    *,
    init: Init,
    start: Captioner | None,
    beside: bool = False,
    encoder: str | nn.Module | None,
    plan: Recipe,
    data_license: str | None,
) -> About:
    """What a run is made from, looked up when it begins.

    data: what `train` was given; where it is a path, the files are hashed. fingerprint: of all of it.
    """
    names: dict[str, int] = {}
    for record in (*training, *validating):
        file, colon, line = record.source.rpartition(":")
        name = re.split(r"[/\\]", file if colon and line.isdecimal() else record.source)[-1]
        names[name] = names.get(name, 0) + 1
    root = Path(data) if isinstance(data, str | os.PathLike) else None
    files = [DataFile(name, count, _hash(root, name)) for name, count in list(names.items())[:_MOST_FILES]]
    counts = {
        name: (len(records), sum(len(record.captions) for record in records))
        for name, records in (("train", training), ("val", validating))
    }
    photos, captions = counts["train"]
    origin = _origin(init, encoder, plan) + _BESIDE * beside
    card = "" if start is None else start._card or ""
    return About(
        story=f"Trained on {photos:,} photos with {captions:,} captions, starting {origin}.",
        files=tuple(files),
        file_count=len(names),
        fingerprint=fingerprint,
        counts=counts,
        licences=_licences(init, card, encoder, plan, data_license) | (_ALSO if beside else {}),
        license=None if beside else _fact(card, "license"),  # the other's may be stricter
    )


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe as others may see it: of a file of weights the name alone, without the folders of this machine.

    Example:
        >>> from showtell.training import load_recipe
        >>> recipe = load_recipe("default").changed({"encoder": "inception-v3-tf:/home/me/weights.safetensors"})
        >>> without_folders(recipe).encoder
        'inception-v3-tf:weights.safetensors'
    """
    return recipe.changed({"encoder": _without_folder(recipe.encoder)})


def _without_folder(encoder: str) -> str:
    kind, colon, file = encoder.partition(":")
    return kind + colon + re.split(r"[/\\]", file)[-1] if kind == "inception-v3-tf" else encoder


def environment(device: torch.device) -> dict[str, str]:
    """What a run runs on: versions, the kind of machine, the device; no name of a machine, folder or person."""
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        count = torch.get_num_threads()
        name = f"CPU ({platform.machine() or 'unknown kind'}), {count} thread{'s' * (count != 1)}"
    return {
        "showtell": __version__,
        "PyTorch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": platform.system() or "unknown",
        "device": name,
    }


def _hash(root: Path | None, name: str) -> str | None:
    """The hash of a file of the data, if it lies where it was named."""
    if root is None:
        return None
    path = root if root.name == name else root / name
    if not is_file(path):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origin(init: Init, encoder: str | nn.Module | None, plan: Recipe) -> str:
    if init is None:
        part = plan.encoder if encoder is None else encoder if isinstance(encoder, str) else type(encoder).__name__
        part = _without_folder(part)
        weights = "" if plan.pretrained or isinstance(encoder, nn.Module) else " with random weights"
        return f"from scratch on the encoder {part}{weights}"
    return "from the captioner that comes with showtell" if init == "default" else "from another captioner"


def _licences(
    init: Init, card: str, encoder: str | nn.Module | None, plan: Recipe, data_license: str | None
) -> dict[str, str]:
    found = {"data": data_license or f"{_UNKNOWN}; whoever publishes this captioner has to say it (--data-license)"}
    if init is None:
        chosen = plan.encoder if encoder is None else encoder
        known = weights_licence(chosen) if isinstance(chosen, str) else None
        drawn = isinstance(chosen, str) and not plan.pretrained
        found["encoder weights"] = "random, not anybody's" if drawn else known or _UNKNOWN
        return found
    said = _fact(card, "license_name") or _fact(card, "license")
    found["captioner it started from"] = said or f"{_UNKNOWN}; its model card names none"
    if init == "default":
        found["encoder weights"] = weights_licence("default") or _UNKNOWN
    else:
        found["encoder weights"] = "as of the captioner it started from"
    return found


def _fact(card: str, key: str) -> str | None:
    """A value of the front matter of a model card."""
    front = _HOLDS.match(card)
    line = re.search(rf"^{key}:[ \t]*(.+)$", front[1], re.MULTILINE) if front else None
    value = line[1].strip().strip("\"'")[:100] if line else ""
    return value if re.fullmatch(r"[\w .,+-]+", value) else None
