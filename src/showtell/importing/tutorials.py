"""Checkpoints of the two tutorials most people learnt captioning from, as captioners of showtell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..assembly import shapes_only
from ..captioner import Captioner
from ..decoders import AttentionLSTMDecoder, LSTMDecoder
from ..encoders.base import BackboneEncoder
from ..errors import FormatError
from ..search import Beam
from .pickles import Foreign, StoredTensor, attributes, read_checkpoint
from .words import Words, read_words

__all__ = ["import_checkpoint"]

State = dict[str, StoredTensor]
M = TypeVar("M", bound=nn.Module)
_RESNETS = {
    ("basic", 2): "resnet18",
    ("basic", 6): "resnet34",
    ("bottleneck", 6): "resnet50",
    ("bottleneck", 23): "resnet101",
    ("bottleneck", 36): "resnet152",
}
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_MOST_DEEP = 50
_MOST_MODULES = 10_000
_NEVER = -1e4  # the score of a word that the checkpoint doesn't know


def import_checkpoint(files: Sequence[str | os.PathLike[str]], words: str | os.PathLike[str]) -> Captioner:
    """A captioner of a tutorial's checkpoint; nothing of the files is run.

    Two layouts are known, by the tensors they hold:

    - one file with the modules or state dicts of "encoder" and "decoder" whose decoder has an attention
      (`encoder_att`, `decoder_att`, `full_att`, `decode_step`): Show, Attend and Tell, photos of 256 x 256, 14 x 14
      cells, and `words` as {word: id};
    - an encoder's and a decoder's state dict in two files, with a linear layer behind a ResNet (`linear` and `bn`, or
      `embed`) and one `nn.LSTM`: Show and Tell, photos of 224 x 224, and `words` a pickled vocabulary.

    Args:
        files: one checkpoint, or encoder and decoder in any order.
        words: a JSON or pickled vocabulary; see `read_words`.

    Raises:
        NotFoundError: a file is missing.
        FormatError: a file that isn't such a checkpoint, is damaged, or doesn't go with the words.
    """
    if isinstance(files, str | os.PathLike):
        files = [files]
    paths = [Path(file) for file in files]
    known = read_words(words)
    where = " and ".join(map(str, paths))
    states, cells = _states(paths, where)
    encoder = next((state for state in states if _backbone_keys(state)), None)
    decoder = next(
        (state for state in states if any(name.endswith("weight_hh") or "weight_hh_l0" in name for name in state)), None
    )
    if encoder is None or decoder is None or encoder is decoder:
        raise FormatError(
            f"{where}: no ResNet encoder and LSTM decoder found; known are the tutorials' checkpoints, one file with "
            "both or two files with their state dicts"
        )
    try:
        attends = any("full_att" in name for name in decoder)
        return _attend(encoder, decoder, known, cells) if attends else _tell(encoder, decoder, known)
    except _MismatchError as error:
        raise FormatError(f"{where}: {error}") from error


class _MismatchError(Exception):
    """Tensors that aren't what the layout says."""


# --- from files to state dicts ----------------------------------------------------------------------------------------


def _states(files: Sequence[Path], where: str) -> tuple[list[State], int]:
    """Every state dict in the files, of the modules "encoder" and "decoder" or the file's own; rows of the map."""
    found: list[State] = []
    cells = 14
    for file in files:
        content = read_checkpoint(file)
        inside = attributes(content)
        size = attributes(inside.get("encoder")).get("enc_image_size")
        cells = size if type(size) is int and 1 <= size <= 64 else cells
        parts = [inside[key] for key in ("encoder", "decoder") if key in inside]
        found += [_state(part) for part in parts] or [_state(content)]
    return found, cells


def _state(thing: Any) -> State:
    """The tensors of a state dict or of a module whose class isn't here, by their dotted names."""
    found: State = {}
    if isinstance(thing, Foreign):
        _collect(thing, "", found, 0, [])
    elif isinstance(thing, Mapping):
        found = {
            name: value for name, value in thing.items() if isinstance(name, str) and isinstance(value, StoredTensor)
        }
    return {name.removeprefix("module."): value for name, value in found.items()}


def _collect(module: Foreign, prefix: str, found: State, depth: int, seen: list[Foreign]) -> None:
    seen.append(module)
    if depth > _MOST_DEEP or len(seen) > _MOST_MODULES:
        raise FormatError("its modules nest deeper than those of any network, or in a circle")
    held = module.state
    for kind in ("_parameters", "_buffers"):
        for name, value in attributes(held.get(kind)).items():
            if isinstance(value, StoredTensor) and isinstance(name, str) and len(name) < 200:
                found[f"{prefix}{name}"] = value
    for name, child in attributes(held.get("_modules")).items():
        if isinstance(child, Foreign) and isinstance(name, str) and len(name) < 200:
            _collect(child, f"{prefix}{name}.", found, depth + 1, seen)


class _Tensors:
    """The tensors of a part, taken by name, in float32; whatever is left in the end is a mistake."""

    def __init__(self, state: State) -> None:
        self.state = dict(state)

    def take(self, pattern: str, *shape: int) -> Tensor:
        """The one tensor whose whole name matches; of this shape, where -1 is any size."""
        names = [name for name in self.state if re.fullmatch(pattern, name)]
        if len(names) != 1:
            raise _MismatchError(f"{len(names)} tensors are called like {pattern}, instead of one")
        stored = self.state.pop(names[0])
        wanted = shape or stored.shape
        if len(stored.shape) != len(wanted) or any(w not in (-1, n) for n, w in zip(stored.shape, wanted, strict=True)):
            raise _MismatchError(f"{names[0]!r:.100} has the shape {list(stored.shape)}, not {list(wanted)}")
        if not stored.dtype.is_floating_point:
            raise _MismatchError(f"{names[0]!r:.100} isn't of floating point")
        return stored.load().float()

    def finish(self) -> None:
        """Raise when something is left."""
        if self.state:
            raise _MismatchError(
                f"{len(self.state)} tensors are left over, {next(iter(self.state))!r:.100} for instance"
            )


# --- the encoder ------------------------------------------------------------------------------------------------------


def _backbone_keys(state: State) -> dict[str, str]:
    """Name in the file -> torchvision's name, of a ResNet that was cut and numbered by nn.Sequential, or not."""
    found = {}
    for name in state:
        match = re.fullmatch(r"(?:(?:resnet|cnn|backbone|model)\.)?(\d|conv1|bn1|layer[1-4])\.(.+)", name)
        if match is not None:
            first = _CHILDREN.get(match[1], match[1])
            if not first.isdigit():
                found[name] = f"{first}.{match[2]}"
    return found if "conv1.weight" in found.values() else {}


def _backbone(tensors: _Tensors) -> tuple[str, State]:
    """Which ResNet it is, and its weights; they are taken out of `tensors`."""
    names = _backbone_keys(tensors.state)
    shapes = {mine: tensors.state[theirs].shape for theirs, mine in names.items()}
    kind = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
    blocks = {name.split(".")[1] for name in shapes if name.startswith("layer3.")}
    found = _RESNETS.get((kind, len(blocks)))
    if found is None:
        raise _MismatchError(
            f"its backbone of {len(blocks)} blocks in layer3 is none of {', '.join(_RESNETS.values())}"
        )
    weights = {mine: tensors.state.pop(theirs) for theirs, mine in names.items()}
    return found, weights


def _fill_backbone(encoder: BackboneEncoder, weights: State) -> None:
    given = {name: tensor for name, tensor in weights.items() if "num_batches" not in name}
    _compare(encoder.backbone.state_dict(), given)
    encoder.backbone.load_state_dict({name: tensor.load() for name, tensor in given.items()}, strict=False)


def _compare(own: Mapping[str, Tensor], given: Mapping[str, Tensor | StoredTensor]) -> None:
    """Every name and shape, but for batch norms' counters."""
    for name in sorted({name for name in own if "num_batches" not in name} ^ given.keys()):
        raise _MismatchError(f"the tensor {name!r:.100} is {'missing' if name in own else 'surplus'}")
    for name, tensor in given.items():
        if tuple(tensor.shape) != tuple(own[name].shape):
            raise _MismatchError(f"{name!r:.100} has the shape {list(tensor.shape)}, not {list(own[name].shape)}")


def _built(make: Callable[[], M], given: Mapping[str, Tensor]) -> M:
    """A module with these weights; it is built without memory first, to compare."""
    with shapes_only():
        _compare(make().state_dict(), given)
    module = make()
    module.load_state_dict(dict(given), strict=False)
    return module


# --- the two layouts --------------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """A matrix with a row a word, in showtell's order; words that the checkpoint hasn't get zeros."""

    words: Words

    def of(self, tensor: Tensor, missing: float = 0.0) -> Tensor:
        if len(tensor) != self.words.count:
            raise _MismatchError(f"it has {len(tensor):,} words and the vocabulary {self.words.count:,}; give its own")
        filler = torch.full_like(tensor[:1], missing)
        return torch.cat([filler if row is None else tensor[row : row + 1] for row in self.words.rows])


def _tell(encoder_state: State, decoder_state: State, words: Words) -> Captioner:
    """A ResNet, a linear layer, perhaps batch norm; the photo is the LSTM's first input."""
    from ..encoders.torchvision import TorchvisionEncoder  # takes a second to import

    left, right, rows = _Tensors(encoder_state), _Tensors(decoder_state), _Rows(words)
    name, weights = _backbone(left)
    head = left.take(r"(linear|embed|fc)\.weight", -1, -1)
    bias = left.take(r"(linear|embed|fc)\.bias", len(head))
    norm = any(name.startswith("bn.") for name in left.state)
    parts = {"linear.weight": head, "linear.bias": bias}
    if norm:
        for key in ("weight", "bias", "running_mean", "running_var"):
            parts[f"norm.{key}"] = left.take(rf"bn\.{key}", len(head))
        left.state.pop("bn.num_batches_tracked", None)
    left.finish()
    embedding = rows.of(right.take(r"(embed|embedding|word_embeddings?)\.weight", -1, len(head)))
    output = rows.of(right.take(r"(linear|fc|hidden2\w+|out|output)\.weight", -1, -1))
    output_bias = rows.of(right.take(r"(linear|fc|hidden2\w+|out|output)\.bias", -1), _NEVER)
    layers = sum(bool(re.fullmatch(r"lstm\.weight_hh_l\d+", name)) for name in right.state)
    cells = {
        name.removeprefix("lstm."): right.take(re.escape(name))
        for name in list(right.state)
        if name.startswith("lstm.")
    }
    right.finish()
    encoder = TorchvisionEncoder(
        name, height=224, width=224,
        # The one with batch norm stretches the photo; the other cuts out its middle.
        **({"resize": "squash", "interpolation": "lanczos"} if norm else {"resize": "crop", "short_side": 256}),
        mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], head={"dim": len(head), "batch_norm": norm},
    )  # fmt: skip
    assert encoder.projection is not None
    _fill_backbone(encoder, weights)
    _compare(encoder.projection.state_dict(), parts)
    encoder.projection.load_state_dict(parts, strict=False)
    make = partial(
        LSTMDecoder, len(words.vocabulary), len(head), embed_dim=len(head), hidden_dim=output.shape[1],
        layers=max(layers, 1), dropout=0.0, project=False,
    )  # fmt: skip
    given = {f"lstm.{name}": tensor for name, tensor in cells.items()}
    given |= {"embedding.weight": embedding, "output.weight": output, "output.bias": output_bias}
    return Captioner(encoder, _built(make, given), words.vocabulary)


def _attend(encoder_state: State, decoder_state: State, words: Words, cells: int) -> Captioner:
    """A ResNet's map as so many rows of cells; attention by ReLU, gated by a vector, before an LSTM cell."""
    from ..encoders.torchvision import TorchvisionEncoder  # takes a second to import

    left, right, rows = _Tensors(encoder_state), _Tensors(decoder_state), _Rows(words)
    name, weights = _backbone(left)
    left.finish()
    keys = right.take(r"attention\.encoder_att\.weight", -1, -1)
    attention_dim, width = keys.shape
    embedding = rows.of(right.take(r"embedding\.weight", -1, -1))
    output = rows.of(right.take(r"fc\.weight", -1, -1))
    hidden, embed = output.shape[1], embedding.shape[1]
    query_bias = right.take(r"attention\.decoder_att\.bias", attention_dim)
    entering = right.take(r"decode_step\.weight_ih", 4 * hidden, embed + width)
    given = {
        "keys.weight": keys,
        "keys.bias": right.take(r"attention\.encoder_att\.bias", attention_dim) + query_bias,
        "query.weight": right.take(r"attention\.decoder_att\.weight", attention_dim, hidden),
        "score.weight": right.take(r"attention\.full_att\.weight", 1, attention_dim),
        "words.embedding.weight": embedding,
        "words.output.weight": output,
        "words.bias": rows.of(right.take(r"fc\.bias", -1), _NEVER),
        "from_words.weight": entering[:, :embed],
        "from_seen.weight": entering[:, embed:],
        "from_hidden.weight": right.take(r"decode_step\.weight_hh", 4 * hidden, hidden),
        "from_words.bias": right.take(r"decode_step\.bias_ih", 4 * hidden)
        + right.take(r"decode_step\.bias_hh", 4 * hidden),
        "start.weight": torch.cat([right.take(rf"init_{x}\.weight", hidden, width) for x in "hc"]),
        "start.bias": torch.cat([right.take(rf"init_{x}\.bias", hidden) for x in "hc"]),
        "beta.weight": right.take(r"f_beta\.weight", width, hidden),
        "beta.bias": right.take(r"f_beta\.bias", width),
    }
    right.take(r"attention\.full_att\.bias", 1)  # the same for every cell, so it changes nothing
    right.finish()
    encoder = TorchvisionEncoder(
        name, height=256, width=256, resize="squash", interpolation="bilinear",
        mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], grid=True, grid_size=cells,
    )  # fmt: skip
    _fill_backbone(encoder, weights)
    if encoder.feature_dim != width:
        raise _MismatchError(f"its decoder looks at cells of {width} numbers and {name} gives {encoder.feature_dim}")
    make = partial(
        AttentionLSTMDecoder, len(words.vocabulary), width, embed_dim=embed, hidden_dim=hidden,
        attention_dim=attention_dim, dropout=0.5, gate="vector", deep_output=False, scoring="relu", start="linear",
    )  # fmt: skip
    decoder = _built(make, given)
    return Captioner(encoder, decoder, words.vocabulary, search=Beam(5, max_length=50))
