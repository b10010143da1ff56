"""Writing the graphs of a captioner and what is needed to run them."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from ..captioner import Captioner
from ..checks import choice, flag, whole
from ..errors import ArgumentError, MissingPackageError
from ..journal import create
from ..search import search_to_config
from ..storage import scratch_folder
from ..version import __version__
from ..vocabulary import Vocabulary
from .graphs import Graphs, trace

__all__ = ["FORMAT", "about_words", "export", "package"]

FORMAT = "showtell.exported"


def export(
    captioner: Captioner,
    folder: str | os.PathLike[str],
    *,
    format: Literal["onnx", "torch"] = "onnx",  # noqa: A002 - what people call it
    int8: bool = False,
    max_length: int | None = None,
) -> None:
    """Write a captioner as two programs that run without showtell: photos to memory, and one step of the decoder.

    Example:
        >>> import tempfile
        >>> from showtell.testing import tiny_captioner
        >>> folder = Path(tempfile.mkdtemp(), "exported")
        >>> export(tiny_captioner(), folder, format="torch")
        >>> sorted(file.name for file in folder.iterdir())
        ['encoder.pt2', 'exported.json', 'step.pt2', 'tokenizer.json']

    `encoder`: images (N, 3, H, W) float32 in 0..1, resized as exported.json says, to the memory and the first state,
    N rows each. `step`: tokens (R,) int64, state and memory of R rows, to logits (R, V) and the new state; so a beam
    search repeats the memory. exported.json names the tensors in their order, the special tokens, the photos' size
    and the captioner's own search.

    Args:
        captioner: any whose encoder takes photos.
        folder: must not exist.
        format: "onnx" (needs `showtell[onnx]`) or "torch", a `torch.export` program to be opened by
            `torch.export.load`. Open only programs that you trust: they are code.
        int8: linear layers in 8 bits, computed dynamically ("onnx" only); smaller, and a little worse.
        max_length: the most tokens a caption of a Transformer can have; default: that of the captioner's own search,
            at least 20. LSTMs have no limit.

    Raises:
        ArgumentError: the folder exists, or a part can't be exported.
        MissingPackageError: onnx, onnxscript or onnxruntime is missing.
    """
    if not isinstance(captioner, Captioner):
        raise ArgumentError(f"export takes a Captioner, such as from_pretrained gives, not {type(captioner).__name__}")
    choice("format", format, ("onnx", "torch"))
    if flag("int8", int8) and format != "onnx":
        raise ArgumentError('int8 belongs to format="onnx"')
    room = getattr(captioner.decoder, "max_positions", 1000)
    if max_length is None:
        length = max(captioner.search.max_length, min(20, room))
    else:
        length = whole("max_length", max_length, 1, room)
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ArgumentError(f"{folder} exists already; name a new folder to export to")
    if format == "onnx":
        for name in ("onnx", "onnxscript", *(["onnxruntime"] if int8 else [])):
            package(name)
    with _quietly():
        try:
            graphs = trace(captioner, length)
        except (RuntimeError, TypeError, ValueError) as error:  # torch.export says why in any of these
            raise ArgumentError(
                f"{type(captioner.encoder).__name__} and {type(captioner.decoder).__name__} can't be exported: "
                f"{' '.join(str(error).split()):.500}"
            ) from error
        files = _onnx(graphs) if format == "onnx" else _programs(graphs)
        if int8:
            files = {name: _to_int8(data) for name, data in files.items()}
    files |= _about(captioner, graphs, length, int8)
    if not create(folder, files):
        raise ArgumentError(f"{folder} exists already; name a new folder to export to")


def package(name: str) -> Any:
    """An optional package, or a clear error."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f'ONNX needs the package {name.split(".")[0]}: pip install "showtell[onnx]"'
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """What torch's exporter warns about is its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _programs(graphs: Graphs) -> dict[str, bytes]:
    files = {"encoder.pt2": io.BytesIO(), "step.pt2": io.BytesIO()}
    for program, file in zip((graphs.encoder, graphs.step), files.values(), strict=True):
        try:
            torch.export.save(program, file)
        except ValueError as error:  # 2.8 can't write infinities
            raise ArgumentError(
                f'torch {torch.__version__} can\'t save this program ({error!s:.200}); torch 2.9 can, and format="onnx"'
            ) from error
    return {name: file.getvalue() for name, file in files.items()}


def _onnx(graphs: Graphs) -> dict[str, bytes]:
    memory, state = ([f"{kind}.{name}" for name in getattr(graphs, kind)] for kind in ("memory", "state"))
    after = [f"new_{name}" for name in state]
    files = {}
    for program, name, inputs, outputs in (
        (graphs.encoder, "encoder.onnx", ["images"], [*memory, *state]),
        (graphs.step, "step.onnx", ["tokens", *state, *memory], ["logits", *after]),
    ):
        made = torch.onnx.export(
            program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False, external_data=False
        )
        assert made is not None
        files[name] = made.model_proto.SerializeToString()
    return files


def _to_int8(data: bytes) -> bytes:
    quantization = package("onnxruntime.quantization")
    graph = package("onnx").load_from_string(data)
    del graph.graph.value_info[:]  # shapes of before, which the transposed weights contradict
    _untie(graph.graph)
    with scratch_folder() as folder:
        quantization.quantize_dynamic(
            graph, folder / "int8", op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=quantization.QuantType.QInt8, per_channel=True,
            reduce_range=True,  # 7 bits: sums of two products overflow 16 bits on a CPU without VNNI
        )  # fmt: skip
        return (folder / "int8").read_bytes()


def _untie(graph: Any) -> None:
    """Copy linear layers' weights that something else reads too: the quantizer transposes them in place."""
    readers = Counter(name for node in graph.node for name in node.input)
    weights = {each.name: each for each in graph.initializer}
    for number, node in enumerate(graph.node):
        name = node.input[1] if node.op_type == "Gemm" else ""
        if name in weights and readers[name] > 1:
            copy = graph.initializer.add()
            copy.CopyFrom(weights[name])
            copy.name = node.input[1] = f"{name}.{number}"


def about_words(words: Vocabulary) -> dict[str, Any]:
    """What exported.json says of the words."""
    return {
        "vocab_size": len(words),
        "start": words.start_id,
        "end": words.end_id,
        "never": [words.pad_id, words.start_id, words.unk_id],
    }


def _about(captioner: Captioner, graphs: Graphs, max_length: int, int8: bool) -> dict[str, bytes]:
    words = captioner.vocabulary
    facts = {
        "format": FORMAT,
        "format_version": 1,
        "showtell": __version__,
        "image": captioner.encoder.image_spec.to_config(),
        "memory": list(graphs.memory),
        "state": list(graphs.state),
        **about_words(words),
        "max_length": max_length if graphs.bounded else None,
        "int8": int8,
        "generation": search_to_config(captioner.search),
    }
    texts = {"exported.json": json.dumps(facts, indent=2) + "\n", "tokenizer.json": words.to_json()}
    return {name: text.encode() for name, text in texts.items()}
