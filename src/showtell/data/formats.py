"""The caption files of the public datasets, and the plain folder: each reader fills `Rows`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..images import IMAGE_SUFFIXES
from .gather import Row, Rows
from .text import read_json, read_lines

__all__ = ["TOKEN_LINE", "caption_pairs", "read_json_captions", "read_plain_folder", "read_tokens"]

TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)", re.DOTALL)
_SPLIT_LISTS = {"trainimages": "train", "devimages": "val", "valimages": "val", "testimages": "test"}


def read_json_captions(path: Path, label: str, into: Rows, *, split: str | None = None) -> None:
    """Karpathy's layout (images with sentences) or COCO's (images and annotations), told apart by their keys."""
    data = read_json(path, _raw_only)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        hint = "; a list of rows is read as JSONL, one object a line" if isinstance(data, list) else ""
        raise DataError(
            f"{path} is neither Karpathy's layout ({{'images': [{{'filename', 'split', 'sentences'}}]}}) nor COCO's "
            f"({{'images': [{{'id', 'file_name'}}], 'annotations': [{{'image_id', 'caption'}}]}}){hint}"
        )
    into.merge = False
    annotations = data.get("annotations")
    if isinstance(annotations, list):
        into.notes.append(f"{label}: COCO's layout")
        _coco(images, annotations, label, into, split)
    else:
        into.notes.append(f"{label}: Karpathy's layout (its restval counts as train)")
        _karpathy(images, label, into)


def _raw_only(entry: dict[str, Any]) -> Any:
    """Karpathy's sentences without their token lists, which would cost a gigabyte for COCO."""
    return entry["raw"] if isinstance(entry.get("raw"), str) and "tokens" in entry else entry


def _karpathy(images: list[Any], label: str, into: Rows) -> None:
    into.has_split = True
    for number, entry in enumerate(images):
        if not isinstance(entry, dict) or not isinstance(entry.get("sentences"), list):
            into.problem(label, None, f"images[{number}] has no sentences: {entry!r:.120}")
            continue
        captions = [_sentence(sentence) for sentence in entry["sentences"]]
        folder = entry.get("filepath", "")
        folder = folder if isinstance(folder, str) else ""
        into.rows.append(Row(entry.get("filename"), captions, entry.get("split"), label, folder=folder))


def _sentence(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    if "raw" in entry:
        return entry["raw"]
    tokens = entry.get("tokens")
    return " ".join(map(str, tokens)) if isinstance(tokens, list) else entry


def _coco(images: list[Any], annotations: list[Any], label: str, into: Rows, split: str | None) -> None:
    into.has_split |= split is not None
    captions: dict[Any, list[Any]] = {}
    names: dict[Any, Any] = {}
    for number, entry in enumerate(images):
        key = _key(entry, "id")
        if key is None:
            into.problem(label, None, f"images[{number}] has no id: {entry!r:.120}")
        elif key in names:
            into.problem(label, None, f"images[{number}]: id {key!r} is listed twice")
        else:
            names[key], captions[key] = entry.get("file_name"), []
    for number, entry in enumerate(annotations):
        key = _key(entry, "image_id")
        if key not in captions:
            into.problem(label, None, f"annotations[{number}] belongs to no image of this file: {entry!r:.120}")
        else:
            captions[key].append(entry.get("caption"))
    into.rows += [Row(names[key], captions[key], split, label) for key in names]


def _key(entry: Any, name: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, (int, str)) else None


def read_tokens(path: Path, label: str, into: Rows) -> None:
    """Flickr8k's token file, `name.jpg#0<TAB>caption` a line, with its lists of splits where they lie beside it."""
    splits: dict[str, str] = {}
    for other in sorted(path.parent.glob("*.txt")):
        name = other.stem.lower().rpartition(".")[2]
        if name in _SPLIT_LISTS:
            splits |= {image.strip(): _SPLIT_LISTS[name] for image in read_lines(other) if image.strip()}
            into.notes.append(f"{other.name}: photos of the {_SPLIT_LISTS[name]} split")
    into.has_split = bool(splits)
    unlisted = set()
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        match = TOKEN_LINE.fullmatch(text)
        if match is None:
            into.problem(label, line, f"expected name.jpg#0, a tab and a caption, not {text!r:.80}")
            continue
        image = match["image"].strip()
        if splits and image not in splits:
            unlisted.add(image)
        into.rows.append(Row(image, [match["caption"]], splits.get(image, "train"), label, line))
    into.notes.append(f"{label}: Flickr8k's token layout")
    if unlisted:
        into.notes.append(f"{len(unlisted):,} photos are in no list of splits and count as train")


def caption_pairs(names: Sequence[str]) -> dict[str, list[str]]:
    """Captions beside photos: for each name.txt that has a photo name.jpg (or .png, ...), the photos of that name."""
    photos: dict[str, list[str]] = {}
    for name in names:
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            photos.setdefault(Path(name).stem, []).append(name)
    texts = (name for name in names if name.endswith(".txt"))
    return {text: photos[text[:-4]] for text in texts if text[:-4] in photos}


def read_plain_folder(folder: Path, names: Sequence[str], into: Rows) -> None:
    """A folder with name.txt beside name.jpg, one caption a line."""
    pairs = caption_pairs(names)
    into.notes.append(f"{folder.name or folder}: captions from name.txt beside name.jpg, one a line")
    for text, photos in pairs.items():
        for photo in photos[1:]:
            into.problem(photo, None, f"{text} belongs to {photos[0]} already; give each photo a name of its own")
        lines = [(n, line) for n, line in enumerate(read_lines(folder / text), start=1) if line.strip()]
        if not lines:
            into.problem(text, None, f"no caption for {photos[0]}")
        into.rows += [Row(photos[0], [line], None, text, number) for number, line in lines]
    taken = {photo for photos in pairs.values() for photo in photos}
    for name in names:
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and name not in taken:
            into.problem(name, None, f"no caption: there is no {Path(name).stem}.txt")
    ignored = [name for name in names if name.endswith(".txt") and name not in pairs]
    if ignored:
        into.notes.append(f"ignored, as no photo has that name: {', '.join(ignored[:5])}{', ...' * (len(ignored) > 5)}")
