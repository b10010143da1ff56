"""The laws of decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decoders import unroll
from ..errors import ArgumentError
from ..protocols import Decoder, Features
from ..rows import Rows, repeat_rows
from .compare import check_config, check_gradients, check_protocol, expect, generator, left_as_it_was, like, pick, same

__all__ = ["check_decoder"]


def check_decoder(decoder: Decoder, features: Features | None = None) -> None:
    """Check the laws on a decoder; it is left as it was.

    Example:
        >>> from showtell.decoders import LSTMDecoder
        >>> check_decoder(LSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4))

    `features` of N images, N at least 2; default: random pooled and grid features, partly masked, of the
    "feature_dim" in `config()`. A decoder with `consumes_state = True` may write into its state. Raises
    AssertionError naming the law and what differed, ArgumentError for unusable `features`.
    """
    check_protocol(decoder, Decoder)
    features = _random_features(decoder) if features is None else features
    images, per_image, steps = features.pooled.shape[0], 2, 4
    if images < 2:
        raise ArgumentError(f"the check needs features of at least 2 images, not {images}")
    device = features.pooled.device
    tokens = torch.randint(0, decoder.vocab_size, (images * per_image, steps), generator=generator()).to(device)
    with left_as_it_was(decoder) as module:
        check_config(decoder)
        module.eval()
        with torch.no_grad():
            memory = decoder.prepare(features)
            _check_rows(decoder, "memory", memory, images)
            _check_step(decoder, tokens, features, memory)
            logits = _forced(decoder, tokens, memory)
            same(6, decoder, "the same forced pass again", _forced(decoder, tokens, memory), logits)
            same(3, decoder, "the steps' logits", unroll(decoder, tokens, memory), logits)
            _check_row_independence(decoder, tokens, features, memory, logits)
            _check_mask(decoder, tokens, features, logits)
        module.train()
        check_gradients(decoder, [decoder(tokens, decoder.prepare(features)).logits])


def _forced(decoder: Decoder, tokens: Tensor, memory: Rows) -> Tensor:
    """The logits of a forced pass, checked for shape together with the attention maps."""
    logits = decoder(tokens, memory).logits
    expected = (*tokens.shape, decoder.vocab_size)
    expect(tuple(logits.shape) == expected, 0, decoder, f"forced logits are {tuple(logits.shape)}, not {expected}")
    if decoder.has_attention:
        maps = decoder(tokens, memory, attention=True).attention
        fits = maps is not None and maps.ndim == 3 and maps.shape[:2] == tokens.shape
        expect(fits, 0, decoder, "has_attention, but attention=True doesn't return maps (R, T, L)")
        assert maps is not None
        fits = bool((maps >= 0).all() and (maps.sum(2) <= 1 + 1e-3).all())
        expect(fits, 0, decoder, "attention is negative or sums to more than 1")
    return logits


def _check_rows(decoder: Decoder, what: str, rows: Any, count: int) -> None:
    fits = isinstance(rows, dict) and all(isinstance(t, Tensor) for t in rows.values())
    expect(fits, 2, decoder, f"{what} is no dict of tensors")
    for name, tensor in rows.items():
        fits = tensor.ndim > 0 and tensor.shape[0] == count
        expect(fits, 2, decoder, f"{what} {name!r} is {tuple(tensor.shape)}; dim 0 must be its {count} rows")


def _check_step(decoder: Decoder, tokens: Tensor, features: Features, memory: Rows) -> None:
    """Laws 2 and 5."""
    images, count = features.pooled.shape[0], tokens.shape[0]
    state = decoder.initial_state(memory, tokens.shape[1])
    _check_rows(decoder, "the first state", state, images)
    state = repeat_rows(state, count // images)
    given = {"tokens": tokens[:, 0], **{f"memory {k!r}": t for k, t in memory.items()}}
    if not getattr(decoder, "consumes_state", False):
        given |= {f"state {k!r}": t for k, t in state.items()}
    before = {name: t.clone() for name, t in given.items()}
    fresh = {name: t.clone() for name, t in state.items()}
    logits, after = decoder.step(tokens[:, 0], state, memory)
    for name, tensor in given.items():
        expect(torch.equal(tensor, before[name]), 5, decoder, f"step changed its argument {name}")
    expected = (count, decoder.vocab_size)
    expect(tuple(logits.shape) == expected, 0, decoder, f"step's logits are {tuple(logits.shape)}, not {expected}")
    _check_rows(decoder, "step's new state", after, count)
    names = f"step turned the state {sorted(state)} into {sorted(after)}"
    expect(set(after) == set(state), 2, decoder, names)

    logits = logits.clone()
    other = decoder.prepare(pick(features, torch.arange(images - 1, -1, -1, device=tokens.device)))
    unroll(decoder, tokens.flip(0), other)
    again, _ = decoder.step(tokens[:, 0], fresh, memory)
    same(2, decoder, "after other calls, the logits of the same step", again, logits)


def _check_row_independence(decoder: Decoder, tokens: Tensor, features: Features, memory: Rows, logits: Tensor) -> None:
    """Law 4."""
    images = features.pooled.shape[0]
    k = tokens.shape[0] // images
    order = torch.arange(images - 1, -1, -1, device=tokens.device)
    rows = (order.unsqueeze(1) * k + torch.arange(k, device=tokens.device)).flatten()
    permuted = decoder.prepare(pick(features, order))
    same(4, decoder, "permuted images' logits", _forced(decoder, tokens[rows], permuted), logits[rows])
    for row in range(tokens.shape[0]):
        alone = decoder.prepare(pick(features, slice(row // k, row // k + 1)))
        one = slice(row, row + 1)
        same(4, decoder, f"row {row} alone, its logits", _forced(decoder, tokens[one], alone), logits[one])
    repeated = repeat_rows(memory, k)
    what = f"{k} rows an image against repeated memories"
    same(4, decoder, f"{what}, forced logits", _forced(decoder, tokens, repeated), logits)
    same(4, decoder, f"{what}, the steps' logits", unroll(decoder, tokens, repeated), logits)


def _check_mask(decoder: Decoder, tokens: Tensor, features: Features, logits: Tensor) -> None:
    """Law 6: what lies in a masked region doesn't matter."""
    if features.mask is None or features.grid is None or bool(features.mask.all()):
        return
    hidden = ~features.mask.unsqueeze(2)
    boxes = None if features.boxes is None else features.boxes.masked_fill(hidden, 0.0)
    other = features._replace(grid=torch.where(hidden, features.grid + 100.0, features.grid), boxes=boxes)
    changed = _forced(decoder, tokens, decoder.prepare(other))
    same(6, decoder, "with other values in masked regions, the logits", changed, logits)


def _random_features(decoder: Decoder) -> Features:
    width = decoder.config().get("feature_dim", getattr(decoder, "feature_dim", None))
    if type(width) is not int:
        raise ArgumentError("this decoder's config() has no feature_dim; pass the check features=Features(...)")
    source = generator()
    corners = torch.rand(3, 5, 4, generator=source).sort(dim=2).values
    return Features(
        pooled=torch.randn(3, width, generator=source).to(like(decoder)),
        grid=torch.randn(3, 5, width, generator=source).to(like(decoder)),
        mask=(torch.arange(5) < torch.tensor([[5], [3], [1]])).to(like(decoder).device),
        boxes=corners[..., [0, 2, 1, 3]].to(like(decoder)),
    )
