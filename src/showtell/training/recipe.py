"""Recipes: everything that a training run is told, from a small TOML file."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..assembly import shapes_only
from ..checks import choice, flag, number, whole
from ..data import Augmentation
from ..errors import ArgumentError, ComponentError, NotFoundError, ShowtellError
from ..registry import find_component
from ..search import parse_search
from .precision import PRECISIONS

__all__ = ["Recipe", "list_recipes", "load_recipe"]

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
)
_AUGMENTATION = ("flip", "flip_guard", "crop_area", "squash", "brightness", "contrast", "saturation")
_SECTIONS = {
    "encoder": (
        "encoder",
        "train_encoder",
        "encoder_learning_rate",
        "layer_decay",
        "encoder_start_epoch",
        "freeze_batch_norm",
    ),
    "decoder": ("decoder", *_DECODER_OPTIONS),
    "vocabulary": ("vocabulary", "min_count", "max_size", "lowercase"),
    "augmentation": _AUGMENTATION,
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
    "objective": ("objective", "doubly_stochastic", "sampling", "sampling_rise"),
    "self_critical": (
        "self_critical_epochs",
        "self_critical_samples",
        "self_critical_baseline",
        "self_critical_learning_rate",
        "self_critical_bleu",
        "self_critical_length",
        "self_critical_dropout",
    ),
    "validation": ("evaluate_every_epochs", "val_photos", "patience", "search"),
    "saving": ("weights_dtype", "save_every_steps", "log_every_steps"),
}
_HOME = {key: section for section, keys in _SECTIONS.items() for key in keys}
_PREFIXED = ("self_critical",)  # in these sections a file leaves the section's name out of the keys


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a training run; `load_recipe` makes one, `recipe.changed(...)` another.

    Example:
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
    vocabulary: str
    min_count: int
    max_size: int
    lowercase: bool
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
    sampling: float
    sampling_rise: str
    self_critical_epochs: int
    self_critical_samples: int
    self_critical_baseline: str
    self_critical_learning_rate: float
    self_critical_bleu: float
    self_critical_length: float
    self_critical_dropout: bool
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
        for key, low, high in (
            ("photos", 1, 4096),
            ("captions", 1, 100),
            ("max_length", 1, 1000),
            ("accumulate", 1, 4096),
            ("encoder_start_epoch", 0, 100_000),
            ("epochs", 1, 100_000),
            ("min_steps", 0, 10**8),
            ("warmup", 0, 10**8),
            ("self_critical_epochs", 0, 100_000),
            ("self_critical_samples", 1, 100),
            ("seed", 0, 2**63 - 1),
            ("evaluate_every_epochs", 1, 100_000),
            ("val_photos", 1, 10**8),
            ("patience", 0, 100_000),
            ("save_every_steps", 1, 10**8),
            ("log_every_steps", 0, 10**8),
        ):
            whole(key, getattr(self, key), low, high)
        for key, low_, high_ in (
            ("encoder_learning_rate", 0.0, 10.0),
            ("layer_decay", 0.0, 1.0),
            ("ema_decay", 0.0, 0.999999),
            ("learning_rate", 0.0, 10.0),
            ("carried_rate", 0.0, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("label_smoothing", 0.0, 0.9),
            ("clip_norm", 0.0, 1e6),
            ("doubly_stochastic", 0.0, 1000.0),
            ("sampling", 0.0, 1.0),
            ("self_critical_learning_rate", 0.0, 10.0),
            ("self_critical_bleu", 0.0, 100.0),
            ("self_critical_length", 0.0, 100.0),
        ):
            object.__setattr__(self, key, number(key, getattr(self, key), low_, high_))
        for key, value in vars(self.augmentation()).items():
            object.__setattr__(self, key, value)
        self._check_objective()
        choice("precision", self.precision, PRECISIONS)
        flag("freeze_batch_norm", self.freeze_batch_norm)
        flag("compile", self.compile)
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
        self._check_decoder()
        choice("vocabulary", self.vocabulary, ("word", "bpe"))
        whole("min_count", self.min_count, 1, 10**6)
        whole("max_size", self.max_size, 0, 10**6)
        flag("lowercase", self.lowercase)

    def _check_objective(self) -> None:
        choice("objective", self.objective, ("cross-entropy", "scheduled-sampling", "self-critical"))
        choice("sampling_rise", self.sampling_rise, ("linear", "inverse-sigmoid"))
        choice("self_critical_baseline", self.self_critical_baseline, ("others", "greedy"))
        flag("self_critical_dropout", self.self_critical_dropout)
        if self.self_critical_baseline == "others" and self.self_critical_samples < 2:
            raise ArgumentError(
                'self_critical_samples = 1 has no others to compare with; take at least 2, or the baseline "greedy"'
            )
        if self.objective == "self-critical" and self.self_critical_epochs:
            raise ArgumentError(
                'objective = "self-critical" makes the whole run self-critical, for the epochs of [optimizer]; leave '
                "self_critical_epochs at 0, or the objective at cross-entropy for both in one run"
            )
        if self.objective == "self-critical" and self.doubly_stochastic:
            raise ArgumentError(
                'doubly_stochastic goes with the objectives that teach words; set it to 0 for "self-critical"'
            )

    def _check_decoder(self) -> None:
        """Give the decoder's options their defaults; the decoder itself, built without memory, checks the values."""
        kind: Any = find_component("decoder", self.decoder)
        parameters = inspect.signature(kind).parameters
        known = [key for key in _DECODER_OPTIONS if key in parameters]
        for key in _DECODER_OPTIONS:
            if key not in known and getattr(self, key) is not None:
                raise ArgumentError(
                    f"{key} is no setting of the decoder {self.decoder}, which has {', '.join(known) or 'none'}"
                )
        for key in known:
            if getattr(self, key) is None:
                if parameters[key].default is inspect.Parameter.empty:
                    raise ArgumentError(f"the decoder {self.decoder} needs a value of {key}; its class has no default")
                object.__setattr__(self, key, parameters[key].default)
        if self.dropout is not None:
            object.__setattr__(self, "dropout", number("dropout", self.dropout, 0.0, 0.95))
        if not {"vocab_size", "feature_dim"} <= set(parameters):
            raise ArgumentError(
                f"the decoder {self.decoder} can't be trained by a recipe: {kind.__name__} must take vocab_size and "
                "feature_dim"
            )
        with shapes_only():
            kind(vocab_size=4, feature_dim=1, **self.decoder_options())

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
            if key not in _HOME:
                raise ArgumentError(f"a recipe has no setting {key!r:.100}{_nearest(key, _HOME)}")
        kept = self.values()
        if overrides.get("decoder", self.decoder) != self.decoder:
            kept = {key: value for key, value in kept.items() if key not in _DECODER_OPTIONS}
        return Recipe(**{**kept, **overrides})

    def values(self) -> dict[str, Any]:
        """Setting -> value, as JSON and TOML have them; without the options that the decoder hasn't."""
        found = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}

    def toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal one.

        Example:
            >>> print(load_recipe("tiny").toml().split("[batch]")[1].splitlines()[1])
            photos = 32
        """
        values = self.values()
        sections = []
        for section, keys in _SECTIONS.items():
            lines = [f"{key} = {json.dumps(values[key])}" for key in keys if key in values]
            sections.append("\n".join([f"[{section}]", *lines]) + "\n")
        return "\n".join(sections)


def list_recipes() -> dict[str, str]:
    """The recipes that come with showtell: name -> what its file says first.

    Example:
        >>> sorted(list_recipes())
        ['default', 'tiny']
    """
    folder = files(__package__).joinpath("recipes")
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            lines = entry.read_text(encoding="utf-8").splitlines()
            found[entry.name.removesuffix(".toml")] = lines[0].lstrip("# ") if lines else ""
    return found


def load_recipe(source: str | os.PathLike[str] | Recipe = "default") -> Recipe:
    """A recipe by name, or from a TOML file of your own; what it doesn't say is as in the default recipe.

    Example:
        >>> load_recipe("tiny").hidden_dim
        128

    A text that ends in ".toml" or holds a slash is a file.

    Raises:
        ComponentError: no recipe of that name.
        NotFoundError: no such file.
        ArgumentError: not TOML, an unknown section or setting (the nearest is named), a value out of its range.
    """
    if isinstance(source, Recipe):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError(f"a recipe is a name, a TOML file or a Recipe, not {source!r:.100}")
    default = Recipe(**_settings(_bundled("default"), "recipe default"))
    name = os.fspath(source)
    if not isinstance(source, str) or name.endswith(".toml") or "/" in name or os.sep in name:
        path = Path(name)
        if not path.is_file():
            raise NotFoundError(f"no recipe file {name!r}")
        text, where = path.read_bytes().decode("utf-8", errors="replace"), str(path)
    else:
        text, where = _bundled(name), f"recipe {name}"
    try:
        return default.changed(_settings(text, where))
    except ShowtellError as error:
        raise ArgumentError(error.args[0] if where in str(error) else f"{where}: {error}") from error


def _bundled(name: str) -> str:
    known = list_recipes()
    if name not in known:
        raise ComponentError(
            f"no recipe {name!r:.100}{_nearest(name, known)}; there are {', '.join(known)}, or pass the path of a "
            ".toml file"
        )
    return files(__package__).joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def _settings(text: str, where: str) -> dict[str, Any]:
    """Flatten the sections, each key in its own one."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError(f"{where}: not TOML: {error}") from error
    settings: dict[str, Any] = {}
    for section, values in document.items():
        if section not in _SECTIONS:
            hint = f"; it belongs in [{_HOME[section]}]" if section in _HOME else _nearest(section, _SECTIONS)
            raise ArgumentError(f"{where}: a recipe has no section [{section}]{hint}")
        if not isinstance(values, dict):
            raise ArgumentError(
                f"{where}: {section} = {values!r:.100} stands outside a section; "
                f"put it under [{_HOME.get(section, section)}]"
            )
        for short, value in values.items():
            key = f"{section}_{short}" if section in _PREFIXED else short
            if key not in _HOME:
                known = [k.removeprefix(f"{section}_") for k in _SECTIONS[section]] if section in _PREFIXED else _HOME
                raise ArgumentError(f"{where}: [{section}] has no setting {short!r:.100}{_nearest(short, known)}")
            if _HOME[key] != section:
                raise ArgumentError(f"{where}: {key} belongs in [{_HOME[key]}], not in [{section}]")
            settings[key] = value
    return settings


def _nearest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"
