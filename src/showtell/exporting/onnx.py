"""An exported ONNX captioner, run by onnxruntime behind showtell's own interfaces."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..captioner import Captioner
from ..checks import whole
from ..decoders import unroll
from ..errors import ArgumentError, FormatError, NotFoundError
from ..image_spec import ImageSpec
from ..protocols import Features, Forced
from ..rows import Rows, repeat_rows, rows_per_image
from ..search import search_from_config
from ..strict_json import parse_object
from ..vocabulary import Vocabulary
from .write import FORMAT, about_words, package

__all__ = ["load_onnx"]

_KEYS = {"format", "format_version", "showtell", "image", "memory", "state", "vocab_size", "start", "end", "never",
         "max_length", "int8", "generation"}  # fmt: skip


class _Part(NamedTuple):
    """One tensor of the memory or the state, without its rows."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def load_onnx(folder: str | os.PathLike[str], *, threads: int | None = None) -> Captioner:
    """Open what `export(..., format="onnx")` wrote, as a captioner whose parts run in onnxruntime on the CPU.

    Example:
        ```python
        captioner = load_onnx("exported")
        print(captioner.caption("photo.jpg"))
        ```

    It captions with every search, streams and scores; it can't be trained, saved or say where it looked. `threads`
    is of each graph; default: as torch has.

    Raises:
        NotFoundError: no such folder, or files are missing.
        FormatError: files that showtell didn't write.
        MissingPackageError: onnxruntime is missing.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ArgumentError(f"an exported captioner is named by its folder, not {type(folder).__name__}")
    folder = Path(folder)
    needed = ("exported.json", "tokenizer.json", "encoder.onnx", "step.onnx")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise NotFoundError(f"{folder} holds no captioner exported to ONNX: {', '.join(missing)} missing")
    where = str(folder / "exported.json")
    facts = parse_object((folder / "exported.json").read_bytes(), where, limit=2**20)
    if facts.get("format") != FORMAT or facts.get("format_version") != 1 or set(facts) != _KEYS:
        raise FormatError(f"{where} isn't what this showtell exports; export the captioner anew")
    try:
        vocabulary = Vocabulary.from_json((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"{folder / 'tokenizer.json'} isn't UTF-8 text") from error
    count = torch.get_num_threads() if threads is None else whole("threads", threads, 1, 1024)
    encoder = _Session(folder / "encoder.onnx", count)
    step = _Session(folder / "step.onnx", count)
    spec = ImageSpec.from_config(facts["image"])
    memory, state = ([f"{kind}.{name}" for name in _names(facts[kind], where)] for kind in ("memory", "state"))
    parts = {name: _Part(name, *shape) for name, shape in zip(encoder.outputs, encoder.returns, strict=True)}
    words = len(vocabulary)
    rows = [((), torch.int64), *((parts[n].shape, parts[n].dtype) for n in (*state, *memory) if n in parts)]
    fits = (
        encoder.outputs == [*memory, *state]
        and encoder.takes == [((3, spec.height, spec.width), torch.float32)]
        and step.inputs == ["tokens", *state, *memory]
        and step.takes == rows
        and step.returns
        == [((words,), torch.float32), *((parts[n].shape, parts[n].dtype) for n in state if n in parts)]
    )
    if not fits or any(facts[name] != value for name, value in about_words(vocabulary).items()):
        raise FormatError(f"{folder}: graphs, words and exported.json don't belong together; export the captioner anew")
    most = facts["max_length"]
    most = None if most is None else whole(f"{where}: max_length", most, 1, 1_000_000)
    encode = _OnnxEncoder(encoder, list(parts.values()), spec)
    decode = _OnnxDecoder(step, list(parts.values()), words, most)
    return Captioner(encode, decode, vocabulary, search=search_from_config(facts["generation"]))


def _names(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise FormatError(f"{where}: memory and state must be lists of names")
    return value


class _Session:
    """A graph that onnxruntime has opened: tensors in, tensors out."""

    def __init__(self, file: Path, threads: int) -> None:
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two graphs, and torch beside them
        try:
            self._session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base but this one
            raise FormatError(f"{file} can't be opened by onnxruntime: {error!s:.300}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.inputs, self.outputs = [each.name for each in inputs], [each.name for each in outputs]
        self.takes, self.returns = _tensors(inputs, file), _tensors(outputs, file)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = {name: t.contiguous().numpy() for name, t in zip(self.inputs, tensors, strict=True)}
        return [torch.from_numpy(found) for found in self._session.run(None, given)]


def _tensors(found: Any, file: Path) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes without their rows, and types, of a graph's inputs or outputs."""
    kinds = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
    try:
        return [(tuple(map(int, each.shape[1:])), kinds[each.type]) for each in found]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file} has inputs or outputs of unknown types or shapes") from error


class _OnnxEncoder(nn.Module):
    """The first graph. Its features hold all that the second needs to know of a photo, in one row."""

    def __init__(self, session: _Session, parts: list[_Part], image_spec: ImageSpec) -> None:
        super().__init__()
        self.session = session
        self.image_spec = image_spec
        self.feature_dim = sum(math.prod(part.shape) for part in parts)

    def __deepcopy__(self, memo: Any) -> _OnnxEncoder:
        return self

    def forward(self, images: Tensor) -> Features:
        expected = (3, self.image_spec.height, self.image_spec.width)
        if tuple(images.shape[1:]) != expected:
            raise ArgumentError(f"this captioner was exported for images (N, {expected}), not {tuple(images.shape)}")
        rows = [part.reshape(part.shape[0], -1).float() for part in self.session(images.float())]
        return Features(torch.cat(rows, dim=1))

    def config(self) -> dict[str, Any]:
        raise ArgumentError("an exported captioner isn't saved again; copy its folder")


class _OnnxDecoder(nn.Module):
    """The second graph, with what the first one said as memory."""

    has_attention = False

    def __init__(self, session: _Session, parts: list[_Part], vocab_size: int, max_length: int | None) -> None:
        super().__init__()
        self.session, self.parts, self.vocab_size, self.max_length = session, parts, vocab_size, max_length

    def __deepcopy__(self, memo: Any) -> _OnnxDecoder:
        return self

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, features: Features) -> Rows:
        """A row a photo -> the memory's and the state's tensors."""
        sizes = [math.prod(part.shape) for part in self.parts]
        columns = torch.split(features.pooled, sizes, dim=1)
        return {
            part.name: column.to(part.dtype).view(-1, *part.shape)
            for part, column in zip(self.parts, columns, strict=True)
        }

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        if self.max_length is not None and max_length > self.max_length:
            raise ArgumentError(
                f"this captioner was exported for at most {self.max_length} tokens, not {max_length}; choose a shorter "
                "max_length, or export it anew with a larger --max-length"
            )
        return {name: rows for name, rows in memory.items() if name.startswith("state.")}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        fixed = {name: rows for name, rows in memory.items() if name.startswith("memory.")}
        times = rows_per_image(tokens.shape[0], next(iter(memory.values())).shape[0])
        logits, *after = self.session(tokens, *state.values(), *repeat_rows(fixed, times).values())
        return logits, dict(zip(state, after, strict=True))

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        if attention:
            raise ArgumentError("an exported captioner can't say where it looked; ask the one it was made of")
        return Forced(unroll(self, tokens, memory))
