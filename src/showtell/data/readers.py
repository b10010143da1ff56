"""Read a dataset from disk, whatever its layout: the layout is found out, and what was found is said."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError, DataError, NotFoundError
from ..garbage import uncollected
from .formats import TOKEN_LINE, caption_pairs, read_json_captions, read_plain_folder, read_tokens
from .gather import Photos, Rows, assemble, folders_below, split_named
from .records import Dataset
from .tables import read_table
from .text import read_lines

__all__ = ["read_dataset"]

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_LAYOUT = """showtell reads, for example, a folder of photos with a file captions.csv:
  image,caption
  photo1.jpg,a dog runs over wet sand
or photo1.txt beside photo1.jpg, one caption a line; TSV, JSONL, Karpathy, COCO and Flickr8k files too"""


@uncollected()
def read_dataset(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    seed: int = 0,
) -> Dataset:
    """Read photos and captions from a file or a folder; the layout is found out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog", "cat"):
        ...         _ = Path(folder, f"{name}.jpg").write_bytes(b"...")
        ...     _ = Path(folder, "captions.csv").write_text("image,caption\\ndog.jpg,a dog\\ncat.jpg,a cat\\n")
        ...     dataset = read_dataset(folder)
        >>> [record.captions for record in dataset.records]
        [('a dog',), ('a cat',)]
        >>> print(dataset.notes[0])
        captions.csv: photos from column 'image', captions from 'caption'

    Layouts: Karpathy's JSON; COCO's annotations; Flickr8k's token file, with its lists of splits beside it; CSV, TSV
    or JSONL with a column of photo names and one or more of captions (rows of one photo belong together; a column
    `split` is optional); a folder with name.txt beside name.jpg. Files of one kind named after splits (train.csv,
    val.csv) are read together. Text is UTF-8.

    Where no photo is marked for validation, about 10 % of them (at least 1) are held out by a hash of their names
    and the seed, so that more photos later move none of these. Rows that can't be used become `Dataset.problems`;
    whether to go on is the caller's choice.

    Args:
        path: the file or the folder.
        images: the folder of the photos; default: beside the captions, in images/, else in the other subfolders.
        image_column: the column that names the photo, for CSV, TSV and JSONL; default: guessed.
        caption_column: the column of the captions; default: guessed, several where they are numbered.
        seed: chooses the photos held out.

    Raises:
        NotFoundError: the path or the folder of the photos doesn't exist.
        DataError: no known layout, several possible files, or no usable photo.
        ArgumentError: a column was named and the layout has none.
    """
    root = Path(path)
    if not os.path.exists(root):  # noqa: PTH110 - False, not an error, for names that no file can have
        raise NotFoundError(f"{root} doesn't exist (looked in {Path.cwd()}).\n{_LAYOUT}")
    if images is not None and not Path(images).is_dir():
        raise NotFoundError(f"the folder of photos, {Path(images)}, doesn't exist")
    files = _choose(root) if root.is_dir() else [root]
    base = root if root.is_dir() else root.parent
    into = Rows()
    tables = 0
    for file in files:
        split = _split_in_name(file) if len(files) > 1 else None
        label = file.relative_to(base).as_posix()
        if file.suffix.lower() == ".json":
            read_json_captions(file, label, into, split=split)
        elif _holds_tokens(file):
            read_tokens(file, label, into)
        else:
            tables += 1
            read_table(file, label, into, image_column=image_column, caption_column=caption_column, split=split)
    if not files:
        read_plain_folder(root, _names(root), into)
    if not tables and (image_column or caption_column):
        raise ArgumentError(
            f"columns are for CSV, TSV and JSONL; {files[0] if files else root} has none, leave them out"
        )

    if images is not None:
        photos = Photos([Path(images)], folders_below(Path(images)))
    else:
        near = list(dict.fromkeys([*(file.parent for file in files), base]))
        photos = Photos(
            [folder / name for folder in near for name in ("", "images", "Images")],
            [below for folder in near for below in folders_below(folder)],
        )
    if photos.settle(into.rows):
        into.notes.append(f"photos are taken from {', '.join(map(str, photos.folders))}")
    looked = ", ".join(map(str, photos.looked))
    hint = f"Photos were looked for in {looked}; another folder is named with images (--images).\n{_LAYOUT}"
    return assemble(into, photos.find, seed=seed, what=str(root), hint=hint)


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())


def _choose(root: Path) -> list[Path]:
    """The caption files of a folder; none means name.txt beside name.jpg. Raises DataError where several would do."""
    found = _caption_files(root)
    if not found and caption_pairs(_names(root)):
        return []
    if not found:
        found = [file for folder in folders_below(root) for file in _caption_files(folder)]
    if not found:
        found = [root / name for name in _names(root) if name.lower().endswith(".json")]
    if not found:
        raise DataError(f"{root} holds no file of captions.\n{_LAYOUT}")
    splits = [_split_in_name(file) for file in found]
    kinds = {(file.parent, file.suffix.lower()) for file in found}
    if len(found) == 1 or (len(kinds) == 1 and None not in splits and len(set(splits)) == len(splits)):
        return found
    names = ", ".join(str(file.relative_to(root)) for file in found)
    raise DataError(f"{root} holds several files of captions: {names}; pass the path of the one you mean")


def _caption_files(folder: Path) -> list[Path]:
    names: Sequence[str] = _names(folder)
    chosen = []
    for name in names:
        low = name.lower()
        if low == "metrics.jsonl":
            continue  # a training run's, whose output is this very folder
        json = low.endswith(".json") and low.startswith(("dataset_", "captions_"))
        tokens = low.endswith((".token.txt", ".token")) and "lemma" not in low
        if json or tokens or low.endswith(_TABLES) or (low == "captions.txt" and not caption_pairs([*names])):
            chosen.append(folder / name)
    return chosen


def _split_in_name(file: Path) -> str | None:
    found = {split_named(word) for word in re.findall("[a-z]+", file.stem.lower())} - {None}
    return found.pop() if len(found) == 1 else None


def _holds_tokens(file: Path) -> bool:
    """Whether a file that isn't JSON is a token file; else it is a table. Raises DataError if it is neither."""
    if file.suffix.lower() in _TABLES:
        return False
    first = next((line for line in read_lines(file) if line.strip()), "")
    if TOKEN_LINE.fullmatch(first):
        return True
    if not re.search(r"[,\t;|]", first):
        raise DataError(f"{file} is no file of captions that showtell knows; it begins {first!r:.60}.\n{_LAYOUT}")
    return False
