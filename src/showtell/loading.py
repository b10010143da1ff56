"""From a folder to a captioner, strictly: what `Captioner.from_pretrained` does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from . import storage, weights
from .assembly import build_part, shapes_only
from .errors import ArgumentError, FormatError
from .protocols import Decoder
from .registry import Kind
from .search import search_from_config
from .vocabulary import Vocabulary

__all__ = ["load_captioner"]

C = TypeVar("C", bound=nn.Module)


def load_captioner(
    make: Callable[..., C], folder: str | os.PathLike[str], makers: dict[Kind, Any]
) -> tuple[C, storage.SavedFolder]:
    """Build the captioner that a folder holds, by `make(encoder, decoder, vocabulary, search=...)`, and fill it.

    Example:
        >>> import tempfile
        >>> from showtell import Captioner
        >>> from showtell.testing import tiny_captioner
        >>> with tempfile.TemporaryDirectory() as name:
        ...     tiny_captioner().save_pretrained(name)
        ...     captioner, saved = load_captioner(Captioner, name, {"encoder": None, "decoder": None})
        >>> saved.config["weights_dtype"]
        'float32'

    `makers`: for each part a class or factory, an instance that keeps its own weights (a warning says so), or None
    for the registered one. Raises what `Captioner.from_pretrained` does.
    """
    folder = Path(folder)
    saved = storage.read_folder(folder)
    vocabulary = Vocabulary.from_json(saved.tokenizer)
    try:
        search = search_from_config(saved.config["generation"])
    except ArgumentError as error:
        raise FormatError(f"{folder}: the generation settings of config.json make no sense: {error}") from error
    kept = [kind for kind, maker in makers.items() if isinstance(maker, nn.Module)]
    # First shapes only, on the meta device: a folder that lies costs no memory.
    with shapes_only():
        shapes = {kind: build_part(kind, saved.config[kind], maker) for kind, maker in makers.items()}
    modules: dict[str, nn.Module] = {kind: cast(nn.Module, part) for kind, part in shapes.items() if kind not in kept}
    expected = weights.expected_tensors(modules, saved.config["weights_dtype"])
    found = {name: info for name, info in saved.tensors.items() if name.split(".")[0] not in kept}
    weights.match(expected, found, str(folder))
    size = cast(Decoder, shapes["decoder"]).vocab_size
    if size != len(vocabulary):
        raise FormatError(
            f"{folder}: the decoder has {size} words and tokenizer.json {len(vocabulary)}; the files don't "
            "belong together"
        )
    parts: dict[str, Any] = {kind: build_part(kind, saved.config[kind], maker) for kind, maker in makers.items()}
    captioner = make(parts["encoder"], parts["decoder"], vocabulary, search=search)
    own = captioner.state_dict()
    tensors = {name: t.to(own[name].dtype) for name, t in saved.load_tensors().items() if name in found}
    captioner.load_state_dict(tensors, strict=not kept)
    for kind in kept:
        warnings.warn(
            f"{folder}: the given {kind} keeps its own weights; the folder's {kind} weights are ignored",
            stacklevel=3,
        )
    return captioner, saved
