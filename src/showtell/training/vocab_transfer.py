"""Another vocabulary for a trained decoder: rows of known words move, rows of new words are initialised."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..protocols import Decoder
from ..vocabulary import Vocabulary

__all__ = ["with_vocabulary"]


def with_vocabulary(decoder: Decoder, old: Vocabulary, new: Vocabulary) -> Decoder:
    """A copy of a decoder that speaks another vocabulary.

    Example:
        >>> import torch
        >>> from showtell.decoders import LSTMDecoder
        >>> old = Vocabulary.build(["a dog"], min_count=1)
        >>> new = old.grown(["a cat"], min_count=1)
        >>> decoder = LSTMDecoder(len(old), feature_dim=8, embed_dim=4, hidden_dim=4)
        >>> grown = with_vocabulary(decoder, old, new)
        >>> grown.vocab_size
        7
        >>> torch.equal(grown.embedding.weight[:6], decoder.embedding.weight)
        True

    Works for any decoder whose config has a `vocab_size` and whose tensors depend on it in dimension 0 only. Words
    are mapped by their spelling. The row of a new word is the mean of the old rows plus what the constructor drew
    for it, so that a new word starts about as likely as an average one. The constructor draws from torch's global
    generator.

    Raises:
        ArgumentError: the decoder can't take another vocabulary, or isn't of the old one's size.
    """
    config = decoder.config()
    module = cast(nn.Module, decoder)
    kind = type(decoder).__name__
    if config.get("vocab_size") != len(old):
        raise ArgumentError(
            f"{kind} can't take another vocabulary: its config must have vocab_size={len(old)}, as the vocabulary "
            f"has, not {config.get('vocab_size')!r}"
        )
    device = next((t.device for t in module.state_dict().values()), torch.device("cpu"))
    target = cast(Any, type(decoder))(**{**config, "vocab_size": len(new)}).to(device)
    rows = _tensors_of_words(decoder, config)
    moved = [(old.id_of(word), i) for i, word in enumerate(new.words)]
    kept = [(a, b) for a, b in moved if a is not None]
    fresh = [b for a, b in moved if a is None]
    sources, places = (torch.tensor(ids, device=device) for ids in zip(*kept, strict=True))
    state = dict(module.state_dict())
    for name, tensor in target.state_dict().items():
        if name not in state:
            raise ArgumentError(f"{kind} can't take another vocabulary: another size makes a new tensor {name!r}")
        if name in rows:
            state[name] = _mapped(state[name], tensor, sources, places, fresh)
        elif state[name].shape != tensor.shape:
            raise ArgumentError(
                f"{kind} can't take another vocabulary: {name!r} changes from {tuple(state[name].shape)} to "
                f"{tuple(tensor.shape)}, not in dimension 0 only"
            )
    target.load_state_dict(state)
    target.train(module.training)
    return cast(Decoder, target)


def _mapped(old: Tensor, drawn: Tensor, sources: Tensor, places: Tensor, fresh: list[int]) -> Tensor:
    """Rows of known words from `old`; the others as drawn, around the mean of the old ones."""
    result = drawn.clone()
    if fresh and old.is_floating_point():
        result[fresh] += old.mean(dim=0)
    result[places] = old[sources]
    return result


def _tensors_of_words(decoder: Decoder, config: dict[str, Any]) -> set[str]:
    """The tensors whose dimension 0 is the word: those that grow by one row with a vocabulary one word larger."""
    with torch.device("meta"):
        larger = cast(Any, type(decoder))(**{**config, "vocab_size": config["vocab_size"] + 1}).state_dict()
    found = set()
    for name, tensor in cast(nn.Module, decoder).state_dict().items():
        other = larger.get(name)
        if other is not None and other.shape == (tensor.shape[0] + 1 if tensor.ndim else 0, *tensor.shape[1:]):
            found.add(name)
    return found
