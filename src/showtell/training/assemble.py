"""From a recipe to the captioner that a run starts with: encoder, vocabulary, decoder, optimizer."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from .. import storage
from ..assembly import check_part, part_entry, rebuild_problem
from ..captioner import Captioner
from ..encoders.joined import JoinedEncoder
from ..errors import ArgumentError
from ..generate import evaluating
from ..protocols import Encoder, SplitEncoder, as_features
from ..ranks import Ranks
from ..registry import component_name, find_component
from ..vocabulary import Vocabulary
from .encoding import make_encoder
from .joining import with_encoder
from .recipe import Recipe
from .recipe_files import load_recipe
from .stages import trunk_stages
from .vocab_transfer import with_vocabulary

__all__ = [
    "Init",
    "assemble",
    "check_equal",
    "fingerprint",
    "least_count",
    "load_init",
    "make_optimizer",
    "starts_anew",
    "trunk_trains",
]

Init = str | os.PathLike[str] | Captioner | None
Say = Callable[[str], None]

_CAPTIONS_A_COUNT = 2000


def load_init(init: Init, beside: Init = None) -> Captioner | None:
    """The captioner that a run starts from, with the encoder of the one `beside`: "default" is the bundled one."""
    if beside is not None:
        start, other = load_init(init), load_init(beside)
        if start is None or other is None:
            raise ArgumentError(
                "an encoder beside goes with a captioner to start from, and this run starts from scratch; name one "
                "with init (--init FOLDER)"
            )
        return with_encoder(start, other)
    if init is None or isinstance(init, Captioner):
        return init
    return Captioner.default() if init == "default" else Captioner.from_pretrained(init)


def starts_anew(recipe: Recipe) -> str | None:
    """Why a run with this recipe can't begin with the bundled captioner, or None where it can.

    Example:
        >>> from showtell.training import load_recipe
        >>> starts_anew(load_recipe("default").changed({"decoder": "transformer.v1"}))
        'a new decoder transformer.v1, from scratch: the recipe names its decoder'
    """
    if recipe.decoder != "default":
        return f"a new decoder {recipe.decoder}, from scratch: the recipe names its decoder"
    if recipe.encoder != "default":
        return f"the encoder {recipe.encoder} and a new decoder, from scratch: the recipe names its encoder"
    if not recipe.pretrained:
        return "random encoder weights and a new decoder, from scratch: the recipe says pretrained = false"
    return None


def fingerprint(part: Captioner | nn.Module | str | None) -> str | None:
    """64 hexadecimal digits that change with any weight, word or setting; a name and None stand for themselves."""
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, Captioner):
        return storage.fingerprint(**part.save_pieces(weights_dtype="float32"))
    check_part("encoder", part)
    config = part_entry("encoder", cast(Encoder, part))["config"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(storage.saved_tensors({"part": part}, "float32").items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_equal(ranks: Ranks, captioner: Captioner) -> None:
    """Check that all processes have the same weights, to the bit; raises RunError."""
    if ranks.count > 1:
        ranks.same(
            {"weights": fingerprint(captioner)},
            "start all on machines of one kind with the same packages, and the same command continues from the last "
            "checkpoint",
        )


def least_count(recipe: Recipe, captions: int) -> int:
    """How often a word must occur: once per 2,000 captions, at most the recipe's min_count, so small data keeps words.

    Example:
        >>> from showtell.training import load_recipe
        >>> [least_count(load_recipe("default"), n) for n in (90, 5_000, 30_000)]
        [1, 2, 5]
    """
    return min(recipe.min_count, max(1, captions // _CAPTIONS_A_COUNT))


def assemble(
    recipe: Recipe, start: Captioner | None, encoder: str | nn.Module | None, captions: Sequence[str], say: Say
) -> Captioner:
    """The captioner before its first step.

    start: a captioner whose encoder, decoder and words carry over (it is left alone); None: a new decoder, on the
    given encoder, the recipe's, or the bundled captioner's. Draws its fresh weights from recipe.seed; the caller's
    random numbers are left alone.
    """
    if start is not None and encoder is not None:
        raise ArgumentError(
            "an encoder of your own goes with init=None (--init none); a captioner to start from brings its own"
        )
    count = least_count(recipe, len(captions))
    if count < recipe.min_count:
        kept = "every word is" if count == 1 else f"words seen {count} times or more are"
        say(f"vocabulary: {kept} kept, as there are few captions (for many, the recipe asks for {recipe.min_count})")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        made = (
            _new(recipe, encoder, captions, count, say)
            if start is None
            else _grown(recipe, start, captions, count, say)
        )
        made.encoder = cast(Encoder, _with_training(made.encoder, recipe.train_encoder))
    if isinstance(encoder, nn.Module) and (problem := rebuild_problem("encoder", made.encoder)):
        say(
            f"warning: {problem}; from_pretrained(..., encoder={type(encoder).__name__}) won't load this run's "
            "captioner before config() returns what __init__ needs"
        )
    if isinstance(encoder, nn.Module) and not recipe.train_encoder:
        say("the given encoder is frozen but for its head, if it has one; train_encoder = true trains all of it")
    unknown = made.vocabulary.unknown(captions)
    say(f"vocabulary: {len(made.vocabulary):,} entries; {unknown.rate:.1%} of the training words are unknown to it")
    return made


def _new(recipe: Recipe, encoder: str | nn.Module | None, captions: Sequence[str], count: int, say: Say) -> Captioner:
    kind: Any = find_component("decoder", recipe.decoder_kind)
    looks = bool(getattr(kind, "has_attention", False))
    part = make_encoder(recipe, encoder, grid=looks, say=say)
    vocabulary = Vocabulary.build(
        captions,
        kind=cast(Any, recipe.vocabulary),
        min_count=count,
        max_size=recipe.max_size or None,
        lowercase=recipe.lowercase,
        punctuation=cast(Any, recipe.punctuation) if recipe.vocabulary == "word" else None,
        hyphens=cast(Any, recipe.hyphens),
    )
    decoder = kind(vocab_size=len(vocabulary), feature_dim=part.feature_dim, **recipe.decoder_options())
    captioner = Captioner(part, decoder, vocabulary, search=recipe.search)
    if looks:
        # A black photo shows whether there is a grid to look at, before hours of encoding.
        spec = part.image_spec
        features = captioner.encode_pixels(torch.zeros(1, 3, spec.height, spec.width))
        with torch.inference_mode(), evaluating(decoder):
            decoder.prepare(features)
    return captioner


def _grown(recipe: Recipe, start: Captioner, captions: Sequence[str], count: int, say: Say) -> Captioner:
    old = start.vocabulary
    words = old
    if old.kind == "word":
        size = max(recipe.max_size, len(old)) if recipe.max_size else None
        words = old.grown(captions, min_count=count, max_size=size)
    decoder: Any = with_vocabulary(start.decoder, old, words)
    say(f"starting from a captioner: its {len(old):,} words, and {len(words) - len(old):,} new ones")
    config, name = start.decoder.config(), component_name("decoder", type(start.decoder))
    kind = name or type(start.decoder).__name__
    if recipe.decoder not in ("default", name):
        raise ArgumentError(
            f"the recipe names the decoder {recipe.decoder} and the captioner to start from has {kind}; train the new "
            "decoder from scratch (init none), or leave the recipe's decoder out and train on with this one"
        )
    usual = load_recipe("default").decoder_options() if recipe.decoder == "default" else {}
    asked = {key: value for key, value in recipe.decoder_options().items() if usual.get(key) != value}
    if other := [key for key, value in asked.items() if config.get(key) != value]:
        kept = ", ".join(f"{key}={config[key]!r}" if key in config else f"no {key}" for key in other)
        say(f"its decoder {kind} is kept: {kept}, whatever the recipe says")
    if recipe.encoder != "default":
        say(f"its encoder is kept, though the recipe names {recipe.encoder!r}; use --init none for that one")
    elif recipe.encoder_options():
        say(f"its encoder is kept, whatever the recipe says of its {', '.join(recipe.encoder_options())}")
    return Captioner(copy.deepcopy(start.encoder), decoder, words, search=recipe.search)


def _with_training(encoder: Encoder, wanted: bool | tuple[str, ...]) -> nn.Module:
    """The encoder with its trunk trainable as the recipe wants; a head always trains."""
    config = encoder.config()
    module = cast(nn.Module, encoder)
    if wanted is not False and isinstance(encoder, JoinedEncoder):
        raise ArgumentError(
            "train_encoder: joined encoders stay as they are, their heads learn; train each in a captioner of its own, "
            "and put one beside the other after that"
        )
    setting = list(wanted) if isinstance(wanted, tuple) else wanted
    if "trainable" in config:
        if config["trainable"] == setting:
            return module
        try:
            other = cast(nn.Module, type(encoder)(**{**config, "trainable": setting}))
        except TypeError as error:
            raise ArgumentError(
                f"train_encoder: {type(encoder).__name__} can't be built from its config(): {error}"
            ) from error
        other.load_state_dict(module.state_dict())
        return other
    head = _head_names(encoder)
    names = [name for name, _ in module.named_parameters()]
    if isinstance(wanted, tuple):
        for prefix in wanted:
            if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
                known = ", ".join(name for name, _ in module.named_children())
                raise ArgumentError(f"train_encoder: the encoder has no part {prefix!r}; its parts are {known}")
    for name, parameter in module.named_parameters():
        named = isinstance(wanted, tuple) and any(name == p or name.startswith(f"{p}.") for p in wanted)
        parameter.requires_grad_(wanted is True or named or name in head)
    return module


def _head_names(encoder: Encoder) -> set[str]:
    """The parameters that `encoder.head` uses, found by asking it for a gradient."""
    module = cast(nn.Module, encoder)
    named = dict(module.named_parameters())
    if not isinstance(encoder, SplitEncoder) or not named:
        return set()
    before = {name: p.requires_grad for name, p in named.items()}
    like = next(iter(named.values()))
    training = module.training
    module.eval().requires_grad_(True)
    spec = encoder.image_spec
    with torch.no_grad():
        trunk = encoder.trunk(torch.zeros(1, 3, spec.height, spec.width, dtype=like.dtype, device=like.device))
    made = as_features(
        encoder.head(as_features(trunk, f"{type(encoder).__name__}.trunk must return")),
        f"{type(encoder).__name__}.head must return",
    )
    sums = [t.sum() for t in (made.pooled, made.grid) if t is not None and t.requires_grad]
    grads = torch.autograd.grad(sums, list(named.values()), allow_unused=True) if sums else [None] * len(named)
    for name, flag in before.items():
        named[name].requires_grad_(flag)
    module.train(training)
    return {name for name, grad in zip(named, grads, strict=True) if grad is not None}


def trunk_trains(encoder: Encoder) -> list[str]:
    """The trainable parameters before the head: where there is one, features can't be computed once and kept."""
    training = [name for name, p in cast(nn.Module, encoder).named_parameters() if p.requires_grad]
    if not training:
        return []
    head = _head_names(encoder)
    return [name for name in training if name not in head]


def make_optimizer(captioner: Captioner, recipe: Recipe, *, carried: bool = False) -> torch.optim.Optimizer:
    """AdamW; the encoder's trunk has learning rates of its own, vectors (biases, norms) have no weight decay.

    The last stage of the trunk learns at `recipe.encoder_learning_rate`, each stage before it at
    `recipe.layer_decay` times the rate of the one after it; stages that aren't trained count too.

    carried: the captioner was trained before, so the rest learns at `recipe.carried_rate` times the rate.
    """
    rate = recipe.learning_rate * (recipe.carried_rate if carried else 1.0)
    depths = _depths(captioner.encoder)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in captioner.named_parameters():
        if parameter.requires_grad:
            depth = depths.get(name)
            own = rate if depth is None else recipe.encoder_learning_rate * recipe.layer_decay**depth
            groups.setdefault((depth is not None, -own, parameter.ndim > 1), []).append(parameter)
    settings = [
        {"params": parameters, "lr": -minus, "weight_decay": recipe.weight_decay if decays else 0.0}
        for (_, minus, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(settings, fused=captioner.device.type in ("cpu", "cuda"))


def _depths(encoder: Encoder) -> dict[str, int]:
    """Name in the captioner of each trained parameter of the trunk -> how many stages lie between it and the head."""
    if not trunk_trains(encoder):
        return {}
    module = cast(nn.Module, encoder)
    head = _head_names(encoder)
    stages = trunk_stages(module, [name for name, _ in module.named_parameters() if name not in head])
    return {f"encoder.{name}": depth for depth, names in enumerate(reversed(stages)) for name in names}
