"""Decoder + features + search -> hypotheses, for people who bring a decoder and features only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .checks import whole
from .errors import ArgumentError
from .protocols import Decoder, Features, as_features
from .rows import Rows
from .search import Force, Greedy, Hypotheses, Mask, Sample, Search, Step, as_search, check_force, check_takes_force

__all__ = ["Begun", "Ready", "begin", "evaluating", "generate"]


class Ready(NamedTuple):
    """A decoder and the features of some photos that it takes."""

    decoder: Decoder
    features: Features


class Begun(NamedTuple):
    """A search that is ready to run: `search(step, state, **options)`, or its `steps`."""

    search: Any
    step: Step
    state: Rows
    options: dict[str, Any]


def generate(
    decoder: Decoder,
    features: Features,
    search: Search = Greedy(),  # noqa: B008 (frozen)
    *,
    start: int = 1,
    end: int = 2,
    forbid: Sequence[int] = (0, 1, 3),
    masks: Sequence[Mask] = (),
    force: Force | None = None,
    positions: Sequence[int] | None = None,
) -> Hypotheses:
    """Caption N images, given as features, with any decoder and any search.

    Example:
        >>> import torch
        >>> from showtell.decoders import LSTMDecoder
        >>> decoder = LSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4)
        >>> found = generate(decoder, Features(pooled=torch.randn(2, 8)), Greedy(max_length=6))
        >>> found.tokens.shape
        torch.Size([2, 1, 6])

    The decoder runs in eval mode (put back afterwards) and without gradients; log-probabilities are the model's own
    in float32 (float64 for a float64 decoder). The words of `forbid` never appear; the others are not rescaled.
    Forbidding the end token gives captions of exactly `max_length` tokens.

    Args:
        decoder: any decoder, on the device of the features.
        features: of N images; N may be 0.
        search: `Greedy(...)`, `Beam(...)` or one of your own.
        start: the id of the start token.
        end: the id of the end token.
        forbid: ids that may not be chosen; by default `<pad>`, `<start>` and `<unk>`.
        masks: what else a caption may not say, see `showtell.search.masks`; all of them hold.
        force: for each image its demands, each the ids of which one must appear; `Beam` alone takes them.
        positions: the images' numbers among all that are captioned, which `Sample` with a seed draws by; by default
            0, 1, ...

    Raises:
        ArgumentError: an id outside the vocabulary, features the decoder can't take, demands that can't be satisfied.
        RunError: the decoder returned NaN, or the forbidden words leave no caption.
    """
    with torch.inference_mode(), evaluating(decoder):
        begun = begin(
            decoder,
            features,
            search,
            start=start,
            end=end,
            forbid=forbid,
            masks=masks,
            force=force,
            positions=positions,
        )
        found: Hypotheses = begun.search(begun.step, begun.state, **begun.options)
    # Autograd refuses inference tensors; a copy made out here is an ordinary one, fit to train on.
    return Hypotheses(*(t.clone() for t in found))


def begin(
    decoder: Decoder,
    features: Features,
    search: Search,
    *,
    start: int,
    end: int,
    forbid: Sequence[int],
    masks: Sequence[Mask],
    force: Force | None,
    positions: Sequence[int] | None,
) -> Begun:
    """Encode what belongs to the images and wrap the decoder's step; arguments and errors are those of `generate`.

    To be called, and the step too, in inference mode and with the decoder in evaluation mode.
    """
    if not hasattr(decoder, "vocab_size"):
        raise ArgumentError(f"generate takes a decoder that follows showtell.Decoder, not {type(decoder).__name__}")
    if not isinstance(forbid, Collection):
        raise ArgumentError(f"forbid takes ids as a list, such as [0, 1, 3], not {forbid!r:.100}")
    for name, ids in (("start", (start,)), ("end", (end,)), ("forbid", tuple(forbid))):
        for one in ids:
            whole(f"{name} token", one, 0, decoder.vocab_size - 1)
    if not isinstance(masks, list | tuple) or not all(map(callable, masks)):
        raise ArgumentError(f"masks are a list of functions such as masks.MinLength(5, end=2), not {masks!r:.200}")
    as_features(features, "generate takes")
    search = as_search(search)
    images, device = features.pooled.shape[0], features.pooled.device
    forbidden = torch.tensor(sorted(set(forbid)), dtype=torch.int64, device=device)
    options: dict[str, Any] = {"images": images, "start": start, "end": end, "device": device}
    if isinstance(search, Sample):
        options["positions"] = positions
    if force is not None:
        _check_force(force, images, search, frozenset(forbid), end, decoder.vocab_size)
        options.update({"force": force} if any(force) else {})
    memory: Rows = {}
    state: Rows = {}

    def step(prefix: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        logits, state = decoder.step(prefix[:, -1], state, memory)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_probs = logits.log_softmax(dim=-1, dtype=dtype)
        log_probs = log_probs.index_fill_(1, forbidden, -torch.inf)
        for mask in masks:
            masked = mask(prefix, log_probs)
            if not isinstance(masked, Tensor) or masked.shape != log_probs.shape:
                found = tuple(masked.shape) if isinstance(masked, Tensor) else masked
                raise ArgumentError(
                    f"a mask returns the log-probabilities that it was given, {tuple(log_probs.shape)}, or others; "
                    f"{mask!r:.100} returned {found!r:.100}"
                )
            log_probs = masked
        return log_probs, state

    if images:
        memory = decoder.prepare(features)
        state = decoder.initial_state(memory, search.max_length)
    return Begun(search, step, state, options)


def _check_force(
    force: Force, images: int, search: Search, forbidden: frozenset[int], end: int, vocab_size: int
) -> None:
    """Refuse demands before anything is computed."""
    for image, demands in enumerate(check_force(force, images, end, search.max_length)):
        if demands:
            check_takes_force(search)
        for demand in demands:
            whole("a forced word", demand[-1], 0, vocab_size - 1)
            if forbidden.issuperset(demand):
                raise ArgumentError(f"image {image}: one of the words {demand} is demanded and all are forbidden")


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode for a while; each submodule's own mode is put back afterwards."""
    training = [m for m in module.modules() if m.training] if isinstance(module, nn.Module) else []
    try:
        if training:
            module.eval()
        yield
    finally:
        for each in training:
            each.training = True
