"""A saved captioner: a folder of data, nothing of which is ever imported, called or unpickled.

```
config.json         what the parts are and how they are built
tokenizer.json      the vocabulary
model.safetensors   encoder.* and decoder.*
README.md           the model card
training.pt         in checkpoints only
```

Links inside a folder are followed: the Hub's cache is made of them. So a folder can make showtell read, never write or
run, another file that its user may read; what isn't a captioner's file is refused by its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from . import journal
from .errors import ArgumentError, FormatError, NotFoundError
from .journal import write_file
from .strict_json import json_problem, parse_object
from .tensor_file import load_tensors, read_header, tensor_bytes
from .weights import DTYPES, WEIGHTS_DTYPES, TensorInfo, expected_tensors, match, saved_tensors

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "SavedFolder",
    "TensorInfo",
    "check_place",
    "create_folder",
    "expected_tensors",
    "fingerprint",
    "json_problem",
    "match",
    "read_folder",
    "saved_tensors",
    "scratch_folder",
    "write_file",
    "write_folder",
]

FORMAT = "showtell.captioner"
FORMAT_VERSION = 1
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format version -> what turns such a config into one of the next version."""

CONFIG, TOKENIZER, WEIGHTS, CARD = "config.json", "tokenizer.json", "model.safetensors", "README.md"
TRAINING = "training.pt"
_NEEDED = (CONFIG, TOKENIZER, WEIGHTS)
_LIMITS = {CONFIG: 2**20, TOKENIZER: 64 * 2**20, CARD: 2**20}
_KEYS = ("format", "format_version", "weights_dtype", "encoder", "decoder", "generation")
_PART_KEYS = ("name", "class", "config")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class SavedFolder:
    """A captioner as it lies on disk: everything but the tensors' values, which `load_tensors` reads.

    It keeps the weights' file open, so that what it reads belongs to `config` even when the folder is overwritten
    meanwhile. `tensors` says what each tensor is; `card` is the text of README.md.
    """

    folder: Path
    config: dict[str, Any]
    tokenizer: str
    tensors: dict[str, TensorInfo]
    card: str | None
    _source: Path = field(repr=False, compare=False)
    _weights: BinaryIO = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        """Close the weights' file when nobody needs it any more."""
        weakref.finalize(self, self._weights.close)

    def load_tensors(self, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Every tensor by name, in the dtype it is saved in; raises FormatError when the file is damaged."""
        tensors = load_tensors(self._weights, self.folder / WEIGHTS)
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def extra(self, name: str) -> Path | None:
        """Where one more file of the folder is ("training.pt"), or None when there is none."""
        if not _PLAIN_NAME.fullmatch(name):
            raise ArgumentError(f"{name!r:.120} is no plain file name")
        path = self._source / name
        return path if path.is_file() else None


def read_folder(folder: str | os.PathLike[str]) -> SavedFolder:
    """Read a saved captioner, strictly; nothing but its data is looked at.

    Example:
        >>> with scratch_folder() as folder:
        ...     part = {"name": "x.v1", "class": "m:X", "config": {}}
        ...     config = {"format": FORMAT, "format_version": 1, "weights_dtype": "float32", "encoder": part,
        ...               "decoder": part, "generation": {}}
        ...     write_folder(folder, config=config, tokenizer="{}", tensors={"decoder.w": torch.ones(2)})
        ...     saved = read_folder(folder)
        >>> saved.tensors
        {'decoder.w': TensorInfo(dtype='F32', shape=(2,))}
        >>> saved.load_tensors()["decoder.w"].tolist()
        [1.0, 1.0]

    A folder that is being overwritten gives the old or the new captioner, whole. An older format is upgraded in memory.

    Raises:
        NotFoundError: no such folder, or files are missing.
        FormatError: not a showtell captioner, a damaged one, or one of a newer showtell.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file; give the folder that holds it" if folder.exists() else "doesn't exist"
        raise NotFoundError(f"{folder} {what}; a saved captioner is a folder with {', '.join(_NEEDED)}")
    source, files = journal.open_set(folder, (*_NEEDED, CARD))
    keep = False
    try:
        missing = [name for name in _NEEDED if name not in files]
        if missing:
            raise NotFoundError(
                f"{folder} holds no saved captioner: {', '.join(missing)} missing (it needs {', '.join(_NEEDED)})"
            )
        config = _check_config(
            parse_object(_read(files, CONFIG, folder), f"{folder / CONFIG}", limit=_LIMITS[CONFIG]), folder
        )
        tokenizer = _text(files, TOKENIZER, folder)
        card = _text(files, CARD, folder) if CARD in files else None
        saved = SavedFolder(
            folder, config, tokenizer, read_header(files[WEIGHTS], folder / WEIGHTS), card, source, files[WEIGHTS]
        )
        keep = True
        return saved
    finally:
        for name, file in files.items():
            if name != WEIGHTS or not keep:
                file.close()


def write_folder(
    folder: str | os.PathLike[str],
    *,
    config: dict[str, Any],
    tokenizer: str,
    tensors: Mapping[str, Tensor],
    card: str | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Save a captioner, whole or not at all; see `read_folder` for an example.

    A captioner that is there is replaced: readers see the old or the new one. Files that aren't a captioner's stay, and
    so does README.md when `card` is None. The same pieces give the same bytes.

    Args:
        folder: made if absent, its parents too.
        config: the content of config.json.
        tokenizer: the content of tokenizer.json.
        tensors: by name, in the dtypes to save; see `saved_tensors`.
        card: the content of README.md.
        extra: more files by plain name, "training.pt" for a checkpoint; without it an old training.pt is removed.

    Raises:
        ArgumentError: the folder holds another program's config.json, weights or README.md; pieces that can't be saved.
        RunError: the disk is full or the place may not be written to.
    """
    folder = Path(folder)
    files = _files(config, tokenizer, tensors, card, extra or {})
    if not os.path.lexists(folder) and journal.create(folder, files):
        return
    _refuse_file(folder)
    journal.overwrite(folder, files, stale=(TRAINING,), check=lambda: _refuse_foreign(folder, tuple(files)))


def check_place(folder: str | os.PathLike[str]) -> None:
    """Check, before long work, that `write_folder` with a card wouldn't refuse a place.

    Example:
        >>> with scratch_folder() as folder:
        ...     check_place(folder / "new")

    Raises the ArgumentError that `write_folder` would raise; nothing is written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        _refuse_file(folder)
        if not (folder / journal.COMMIT).is_dir():
            _refuse_foreign(folder, (*_NEEDED, CARD))


def create_folder(
    folder: str | os.PathLike[str],
    *,
    config: dict[str, Any],
    tokenizer: str,
    tensors: Mapping[str, Tensor],
    card: str | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Save a captioner as a new folder, a checkpoint; like `write_folder`, but the folder must not exist.

    Raises ArgumentError when it does.
    """
    folder = Path(folder)
    if not journal.create(folder, _files(config, tokenizer, tensors, card, extra or {})):
        raise ArgumentError(f"{folder} exists already; name a new folder")


def fingerprint(*, config: dict[str, Any], tokenizer: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of what would be saved, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, data in _files(config, tokenizer, tensors, None, {}).items():
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="showtell-") as folder:
        yield Path(folder)


def _files(
    config: dict[str, Any], tokenizer: str, tensors: Mapping[str, Tensor], card: str | None, extra: Mapping[str, bytes]
) -> dict[str, bytes]:
    strange = sorted(name for name, tensor in tensors.items() if tensor.dtype not in DTYPES.values())
    if strange:
        raise ArgumentError(f"{strange[0]} has the dtype {tensors[strange[0]].dtype}, which can't be read back")
    files = {
        CONFIG: _config_bytes(config),
        TOKENIZER: _utf8(TOKENIZER, tokenizer),
        WEIGHTS: tensor_bytes(tensors),
        **({} if card is None else {CARD: _utf8(CARD, card)}),
    }
    for name, limit in _LIMITS.items():
        if len(files.get(name, b"")) > limit:
            raise ArgumentError(f"{name} would be {len(files[name]):,} bytes long; at most {limit:,} can be read back")
    for name, data in extra.items():
        if not _PLAIN_NAME.fullmatch(name) or name in (*_NEEDED, CARD):
            raise ArgumentError(
                f"{name!r:.120} can't be the name of an extra file; use plain ones such as {TRAINING!r}"
            )
        files[name] = data
    return files


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{name} can't be written as UTF-8: {error!s:.200}") from error


def _config_bytes(config: dict[str, Any]) -> bytes:
    problem = json_problem(config)
    if problem:
        raise ArgumentError(f"the captioner's config {problem}")
    checked = _check_config(config, Path())
    ordered: dict[str, Any] = {key: checked[key] for key in _KEYS}
    for part in ("encoder", "decoder"):
        ordered[part] = {key: _sorted(checked[part][key]) for key in _PART_KEYS}
    ordered["generation"] = _sorted(checked["generation"])
    return (json.dumps(ordered, indent=2, ensure_ascii=True) + "\n").encode("utf-8")


def _sorted(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def _check_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config, upgraded to the newest version, after its outer shape has been checked."""
    where = folder / CONFIG
    if config.get("format") != FORMAT:
        raise FormatError(
            f'{where} is no showtell captioner\'s: its "format" is {config.get("format")!r:.60}, not "{FORMAT}"'
        )
    version = config.get("format_version")
    if type(version) is not int:
        raise FormatError(f"{where}: format_version must be a whole number, not {version!r:.60}")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{where} has format version {version} and this showtell reads up to {FORMAT_VERSION}; "
            "upgrade showtell: pip install --upgrade showtell"
        )
    while version < FORMAT_VERSION:
        if version not in UPGRADES:
            raise FormatError(f"{where}: there is no format version {version}")
        config = UPGRADES[version](config)
        version += 1
    _check_keys(config, _KEYS, str(where))
    if config["weights_dtype"] not in tuple(WEIGHTS_DTYPES):
        raise FormatError(f"{where}: weights_dtype must be one of {', '.join(WEIGHTS_DTYPES)}")
    for part in ("encoder", "decoder"):
        entry = config[part]
        _check_keys(entry, _PART_KEYS, f"{where}: {part}")
        for key, longest in (("name", 100), ("class", 300)):
            text = entry[key]
            if not (isinstance(text, str) and len(text) <= longest) and not (key == "name" and text is None):
                raise FormatError(f"{where}: the {key} of the {part} must be text of at most {longest} characters")
        if not isinstance(entry["config"], dict):
            raise FormatError(f"{where}: the config of the {part} must be an object")
    if not isinstance(config["generation"], dict):
        raise FormatError(f"{where}: generation must be an object")
    return config


def _check_keys(value: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        given = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{where} must have the keys {', '.join(keys)}, not {given!s:.200}")


def _refuse_file(folder: Path) -> None:
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is a file; a captioner is saved as a folder, name another place")


def _refuse_foreign(folder: Path, files: tuple[str, ...]) -> None:
    """Never overwrite what another program wrote under one of our names."""
    names = (*files, TRAINING)
    folders = [name for name in names if (folder / name).is_dir()]
    if folders:
        raise ArgumentError(f"{folder / folders[0]} is a folder; move it away or save to another place")
    ours = False
    if (folder / CONFIG).is_file():
        with suppress(FormatError):
            config = parse_object((folder / CONFIG).read_bytes(), CONFIG, limit=_LIMITS[CONFIG])
            ours = config.get("format") == FORMAT
    present = [name for name in dict.fromkeys(names) if name != CARD and (folder / name).exists()]
    if present and not ours:
        raise ArgumentError(
            f"{folder} holds {', '.join(present)} but no {CONFIG} of a showtell captioner; save to another folder, "
            "or remove them first"
        )
    card = folder / CARD
    if CARD in files and card.is_file() and b"library_name: showtell" not in card.read_bytes():
        raise ArgumentError(
            f"{card} is no model card of showtell and would be overwritten; move it away or save to another folder"
        )


def _read(files: Mapping[str, BinaryIO], name: str, folder: Path) -> bytes:
    limit = _LIMITS[name]
    data = files[name].read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{folder / name} is longer than {limit:,} bytes")
    return data


def _text(files: Mapping[str, BinaryIO], name: str, folder: Path) -> str:
    try:
        return _read(files, name, folder).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{folder / name} isn't UTF-8 text") from error
