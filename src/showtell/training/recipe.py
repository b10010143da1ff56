"""A recipe: everything that a training run is told."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..assembly import shapes_only
from ..checks import choice, flag, number, whole
from ..data import Augmentation
from ..errors import ArgumentError
from ..registry import find_component
from ..search import parse_search
from .precision import PRECISIONS
from .recipe_ranges import NUMBERS, WHOLE_NUMBERS

__all__ = ["HOME", "PREFIXED", "SECTIONS", "Recipe", "nearest"]

_DECODER_OPTIONS = (
    "embed_dim",
    "hidden_dim",
    "attention_dim",
    "layers",
    "heads",
    "feedforward_dim",
    "dropout",
    "image",
    "gate",
    "deep_output",
    "positions",
    "max_positions",
    "tied",
    "project",
)
_AUGMENTATION = ("flip", "flip_guard", "crop_area", "squash", "brightness", "contrast", "saturation")
_HEAD_OPTIONS = ("batch_norm", "relu", "dropout")
SECTIONS = {
    "encoder": (
        "encoder",
        "pretrained",
        "image_size",
        "resize",
        "grid_size",
        "head_dim",
        *(f"head_{key}" for key in _HEAD_OPTIONS),
        "train_encoder",
        "encoder_learning_rate",
        "layer_decay",
        "encoder_start_epoch",
        "freeze_batch_norm",
    ),
    "decoder": ("decoder", *_DECODER_OPTIONS),
    "vocabulary": ("vocabulary", "min_count", "max_size", "lowercase", "punctuation", "hyphens"),
    "augmentation": ("views", *_AUGMENTATION),
    "batch": ("photos", "captions", "max_length", "accumulate"),
    "optimizer": (
        "epochs",
        "min_steps",
        "learning_rate",
        "carried_rate",
        "weight_decay",
        "warmup",
        "label_smoothing",
        "clip_norm",
        "precision",
        "ema_decay",
        "compile",
        "seed",
    ),
    "objective": (
        "objective",
        "doubly_stochastic",
        "prefixes",
        "sampling",
        "sampling_rise",
        "teachers",
        "distillation",
    ),
    "self_critical": (
        "self_critical_epochs",
        "self_critical_samples",
        "self_critical_baseline",
        "self_critical_learning_rate",
        "self_critical_temperature",
        "self_critical_bleu",
        "self_critical_length",
        "self_critical_dropout",
        "self_critical_words",
    ),
    "validation": ("evaluate_every_epochs", "val_photos", "patience", "search"),
    "saving": ("weights_dtype", "save_every_steps", "log_every_steps"),
}
HOME = {key: section for section, keys in SECTIONS.items() for key in keys}
PREFIXED = ("self_critical",)  # in these sections a file leaves the section's name out of the keys


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a training run; `load_recipe` makes one, `recipe.changed(...)` another.

    Example:
        >>> from showtell.training import load_recipe
        >>> recipe = load_recipe("default").changed({"epochs": 3})
        >>> recipe.epochs, recipe.precision
        (3, 'fp32')

    What each setting means stands beside it in recipes/default.toml, which is where the defaults live. The options of
    the decoder are None where the decoder hasn't them; one that isn't given is as in the decoder's class.

    Raises:
        ArgumentError: a value out of its range, or an option that the decoder hasn't.
        ComponentError: no decoder of that name.
    """

    encoder: str
    pretrained: bool
    image_size: int
    resize: str
    grid_size: int
    head_dim: int
    head_batch_norm: bool
    head_relu: bool
    head_dropout: float
    train_encoder: bool | tuple[str, ...]
    encoder_learning_rate: float
    layer_decay: float
    encoder_start_epoch: int
    freeze_batch_norm: bool
    decoder: str
    embed_dim: int | None = None
    hidden_dim: int | None = None
    attention_dim: int | None = None
    layers: int | None = None
    heads: int | None = None
    feedforward_dim: int | None = None
    dropout: float | None = None
    image: str | None = None
    gate: str | None = None
    deep_output: bool | None = None
    positions: str | None = None
    max_positions: int | None = None
    tied: bool | None = None
    project: bool | None = None
    vocabulary: str
    min_count: int
    max_size: int
    lowercase: bool
    punctuation: str
    hyphens: str
    views: int
    flip: float
    flip_guard: tuple[str, ...]
    crop_area: float
    squash: float
    brightness: float
    contrast: float
    saturation: float
    photos: int
    captions: int
    max_length: int
    accumulate: int
    epochs: int
    min_steps: int
    learning_rate: float
    carried_rate: float
    weight_decay: float
    warmup: int
    label_smoothing: float
    clip_norm: float
    precision: str
    ema_decay: float
    compile: bool
    seed: int
    objective: str
    doubly_stochastic: float
    prefixes: bool
    sampling: float
    sampling_rise: str
    teachers: tuple[str, ...]
    distillation: float
    self_critical_epochs: int
    self_critical_samples: int
    self_critical_baseline: str
    self_critical_learning_rate: float
    self_critical_temperature: float
    self_critical_bleu: float
    self_critical_length: float
    self_critical_dropout: bool
    self_critical_words: float
    evaluate_every_epochs: int
    val_photos: int
    patience: int
    search: str
    weights_dtype: str
    save_every_steps: int
    log_every_steps: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense, and give every number its type."""
        self._check_model()
        for key, low, high in WHOLE_NUMBERS:
            whole(key, getattr(self, key), low, high)
        for key, least, most in NUMBERS:
            object.__setattr__(self, key, number(key, getattr(self, key), least, most))
        for key, value in vars(self.augmentation()).items():
            object.__setattr__(self, key, value)
        self._check_objective()
        choice("precision", self.precision, PRECISIONS)
        if self.encoder_start_epoch >= self.epochs:
            raise ArgumentError(
                f"encoder_start_epoch = {self.encoder_start_epoch} never comes in a run of {self.epochs} epochs, which "
                "count from 0; lower it, or raise epochs"
            )
        choice("weights_dtype", self.weights_dtype, ("float32", "float16", "bfloat16"))
        if not isinstance(self.search, str):
            raise ArgumentError(f'search must be a text such as "beam:3", not {self.search!r:.100}')
        longest = max(self.max_length, parse_search(self.search).max_length)
        if self.max_positions is not None and self.max_positions < longest:
            raise ArgumentError(
                f"max_positions = {self.max_positions} is too few for captions of {longest} tokens; raise it, or lower "
                "max_length and the search's max_length"
            )

    def _check_model(self) -> None:
        if not isinstance(self.encoder, str) or not 1 <= len(self.encoder) <= 200:
            raise ArgumentError(f'encoder must be a name such as "default" or "timm:NAME", not {self.encoder!r:.100}')
        trained = self.train_encoder
        if isinstance(trained, list | tuple):
            if not trained or not all(isinstance(name, str) and name for name in trained):
                raise ArgumentError(
                    f"train_encoder must be true, false or a list of module names, not {trained!r:.100}"
                )
            object.__setattr__(self, "train_encoder", tuple(trained))
        elif type(trained) is not bool:
            raise ArgumentError(f"train_encoder must be true, false or a list of module names, not {trained!r:.100}")
        self._check_encoder()
        self._check_decoder()
        choice("vocabulary", self.vocabulary, ("word", "bpe"))
        whole("min_count", self.min_count, 1, 10**6)
        whole("max_size", self.max_size, 0, 10**6)
        choice("punctuation", self.punctuation, ("drop", "keep"))
        choice("hyphens", self.hyphens, ("inside", "apart"))
        for key in ("lowercase", "prefixes", "freeze_batch_norm", "compile", "self_critical_dropout"):
            flag(key, getattr(self, key))

    def _check_encoder(self) -> None:
        """The encoder isn't built here: whether it can be so large, or has a grid, it says itself."""
        flag("pretrained", self.pretrained)
        for key, low, high in (("image_size", 16, 2048), ("grid_size", 1, 64), ("head_dim", 1, 65536)):
            value = getattr(self, key)
            whole(key, value, low if value else 0, high)
        choice("resize", self.resize, ("as-trained", "squash", "crop"))
        flag("head_batch_norm", self.head_batch_norm)
        flag("head_relu", self.head_relu)
        object.__setattr__(self, "head_dropout", number("head_dropout", self.head_dropout, 0.0, 0.95))
        asked = [key for key in _HEAD_OPTIONS if getattr(self, f"head_{key}")]
        if asked and not self.head_dim:
            raise ArgumentError(f"head_{asked[0]} belongs to a head; give it a width with head_dim")

    def _check_objective(self) -> None:
        choice("objective", self.objective, ("cross-entropy", "scheduled-sampling", "distillation", "self-critical"))
        self._check_teachers()
        choice("sampling_rise", self.sampling_rise, ("linear", "inverse-sigmoid"))
        choice("self_critical_baseline", self.self_critical_baseline, ("others", "greedy"))
        if self.self_critical_baseline == "others" and self.self_critical_samples < 2:
            raise ArgumentError(
                'self_critical_samples = 1 has no others to compare with; take at least 2, or the baseline "greedy"'
            )
        if self.objective == "self-critical" and self.self_critical_epochs:
            raise ArgumentError(
                'objective = "self-critical" makes the whole run self-critical, for the epochs of [optimizer]; leave '
                "self_critical_epochs at 0, or the objective at cross-entropy for both in one run"
            )
        if self.prefixes and self.objective != "cross-entropy":
            raise ArgumentError(
                f'prefixes goes with the objective cross-entropy; set it to false for "{self.objective}"'
            )
        if self.objective == "self-critical" and self.doubly_stochastic:
            raise ArgumentError(
                'doubly_stochastic goes with the objectives that teach words; set it to 0 for "self-critical"'
            )

    def _check_teachers(self) -> None:
        names = self.teachers
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise ArgumentError(f'teachers is a list of folders of captioners such as ["runs/one"], not {names!r:.100}')
        object.__setattr__(self, "teachers", tuple(names))
        mixed = self.objective == "self-critical" and self.self_critical_words > 0
        if bool(names) != (self.objective == "distillation") and not mixed:
            raise ArgumentError(
                'teachers and objective = "distillation" go together: name the folders of the captioners to learn '
                'from, or leave both out; "self-critical" takes them too, where self_critical_words is not 0'
            )

    def _check_decoder(self) -> None:
        """Give the decoder's options their defaults; the decoder itself, built without memory, checks the values."""
        name = self.decoder_kind
        kind: Any = find_component("decoder", name)
        parameters = inspect.signature(kind).parameters
        if self.grid_size and not getattr(kind, "has_attention", False):
            raise ArgumentError(
                f"grid_size = {self.grid_size} needs a decoder that looks at a grid, and {name} knows one "
                "vector a photo; set it to 0, or choose attention-lstm.v1"
            )
        known = [key for key in _DECODER_OPTIONS if key in parameters]
        for key in _DECODER_OPTIONS:
            if key not in known and getattr(self, key) is not None:
                raise ArgumentError(
                    f"{key} is no setting of the decoder {name}, which has {', '.join(known) or 'none'}"
                )
        for key in known:
            if getattr(self, key) is None:
                if parameters[key].default is inspect.Parameter.empty:
                    raise ArgumentError(f"the decoder {name} needs a value of {key}; its class has no default")
                object.__setattr__(self, key, parameters[key].default)
        if self.dropout is not None:
            object.__setattr__(self, "dropout", number("dropout", self.dropout, 0.0, 0.95))
        if not {"vocab_size", "feature_dim"} <= set(parameters):
            raise ArgumentError(
                f"the decoder {name} can't be trained by a recipe: {kind.__name__} must take vocab_size and feature_dim"
            )
        with shapes_only():
            width = self.head_dim or self.embed_dim or 1  # without a head the width is known when the encoder is
            kind(vocab_size=4, feature_dim=width, **self.decoder_options())

    @property
    def decoder_kind(self) -> str:
        """The decoder that a run from scratch trains."""
        return _kind(self.decoder)

    def encoder_options(self) -> dict[str, Any]:
        """What the encoder is called with beside its name; what the recipe leaves to the encoder isn't among it."""
        found: dict[str, Any] = {key: getattr(self, key) for key in ("image_size", "grid_size") if getattr(self, key)}
        if self.resize != "as-trained":
            found["resize"] = self.resize
        if self.head_dim:
            found["head"] = {"dim": self.head_dim, **{key: getattr(self, f"head_{key}") for key in _HEAD_OPTIONS}}
        return found

    def decoder_options(self) -> dict[str, Any]:
        """What the decoder's class is called with, beside vocab_size and feature_dim."""
        return {key: getattr(self, key) for key in _DECODER_OPTIONS if getattr(self, key) is not None}

    def augmentation(self) -> Augmentation:
        """How photos are changed at random while training."""
        return Augmentation(**{key: getattr(self, key) for key in _AUGMENTATION})

    def changed(self, overrides: Mapping[str, Any]) -> Recipe:
        """A copy with other values; raises ArgumentError for an unknown name, naming the nearest one.

        Another `decoder` begins with the defaults of its class, whatever options the present one has.
        """
        if not isinstance(overrides, Mapping):
            raise ArgumentError(f"settings to change are a dict such as {{'epochs': 3}}, not {overrides!r:.100}")
        for key in overrides:
            if key not in HOME:
                raise ArgumentError(f"a recipe has no setting {key!r:.100}{nearest(key, HOME)}")
        kept = self.values()
        if _kind(overrides.get("decoder", self.decoder)) != self.decoder_kind:
            kept = {key: value for key, value in kept.items() if key not in _DECODER_OPTIONS}
        return Recipe(**{**kept, **overrides})

    def values(self) -> dict[str, Any]:
        """Setting -> value, as JSON and TOML have them; without the options that the decoder hasn't."""
        found = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal one.

        Example:
            >>> from showtell.training import load_recipe
            >>> print(load_recipe("tiny").toml().split("[batch]")[1].splitlines()[1])
            photos = 32
        """
        values = self.values()
        sections = []
        for section, keys in SECTIONS.items():
            short = f"{section}_" if section in PREFIXED else ""
            lines = [
                f"{key.removeprefix(short)} = {json.dumps(values[key], ensure_ascii=False)}"
                for key in keys
                if key in values
            ]
            sections.append("\n".join([f"[{section}]", *lines]) + "\n")
        return "\n".join(sections)


def _kind(decoder: str) -> str:
    return "lstm.v1" if decoder == "default" else decoder


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
