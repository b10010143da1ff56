"""A second encoder for a trained captioner: it says the same, until it learns to look with both."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..captioner import Captioner
from ..encoders.joined import JoinedEncoder
from ..errors import ArgumentError
from ..generate import evaluating
from ..registry import component_name

__all__ = ["with_encoder"]


def with_encoder(captioner: Captioner, other: Captioner) -> Captioner:
    """A copy of a captioner with the encoder of another beside its own.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> one, other = tiny_captioner(), tiny_captioner(seed=1)
        >>> both = with_encoder(one, other)
        >>> both.encoder.feature_dim, one.encoder.feature_dim
        (32, 16)
        >>> photo = torch.rand(3, 32, 32)
        >>> both.caption(photo).text == one.caption(photo).text
        True

    Its decoder gets a weight of 0 for each new number, so that captions are the same before training goes on. Works
    for any decoder whose config has a `feature_dim` and that takes features by linear layers.

    Raises:
        ArgumentError: the encoders don't fit together, or the decoder can't take more features.
    """
    for part in (captioner.encoder, other.encoder):
        if not isinstance(part, JoinedEncoder) and component_name("encoder", type(part)) is None:
            raise ArgumentError(
                f"{type(part).__name__} has no registered name, so a captioner that joins it with another couldn't be "
                "opened again; put showtell.register_encoder before its class"
            )
        if any("_folded" in vars(module) for module in cast(nn.Module, part).modules()):
            raise ArgumentError("this captioner is a copy made by for_inference(); join the one it was made from")
    old: Any = captioner.decoder
    like = next(old.parameters())
    encoder = JoinedEncoder([copy.deepcopy(captioner.encoder), copy.deepcopy(other.encoder)]).to(like)
    name, config = type(old).__name__, old.config()
    added = encoder.feature_dim - captioner.encoder.feature_dim
    try:
        with torch.random.fork_rng(devices=[]):
            decoder = type(old)(**{**config, "feature_dim": config["feature_dim"] + added})
        state = cast(nn.Module, decoder).state_dict()
        decoder.load_state_dict({key: _padded(tensor, state[key], added) for key, tensor in old.state_dict().items()})
    except (ArgumentError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ArgumentError(f"{name} can't take the features of a second encoder: {error}") from error
    made = Captioner(encoder, decoder.to(like), captioner.vocabulary, search=captioner.search)
    made._card, made._saved_dtype = captioner._card, captioner._saved_dtype
    spec = encoder.image_spec
    photo = torch.rand(1, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(0)).to(like)
    tokens = torch.full((1, 4), captioner.vocabulary.start_id, device=like.device)
    with torch.inference_mode(), evaluating(captioner), evaluating(made):
        a, b = (one(photo, tokens).logits for one in (captioner, made))
    same = (a - b).abs().max() <= 100 * torch.finfo(a.dtype).eps * a.abs().max()  # sums in another order; never of NaN
    if not same:
        raise ArgumentError(f"{name} can't take the features of a second encoder: what it says changes with them")
    return made.train(captioner.training)


def _padded(tensor: Tensor, like: Tensor, added: int) -> Tensor:
    """Zeros behind, along the one axis that is longer."""
    longer = [axis for axis, (a, b) in enumerate(zip(tensor.shape, like.shape, strict=True)) if a != b]
    if not longer:
        return tensor
    (axis,) = longer
    if like.shape[axis] - tensor.shape[axis] != added:
        raise ValueError(f"a tensor of {tuple(tensor.shape)} becomes one of {tuple(like.shape)}")
    return F.pad(tensor, [0, 0] * (tensor.ndim - 1 - axis) + [0, added])
