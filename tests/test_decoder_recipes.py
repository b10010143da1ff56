"""A recipe names the decoder that is trained, and its options."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from showtell.captioner import Captioner
from showtell.data import Dataset, from_objects
from showtell.decoders import AdaptiveLSTMDecoder, AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder
from showtell.encoders.efficientnet_lite import EfficientNetLite
from showtell.errors import ArgumentError, ComponentError
from showtell.registry import register_decoder
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.training import load_recipe, train
from showtell.training.assemble import assemble

SMALL: dict[str, dict[str, Any]] = {
    "attention-lstm.v1": {"embed_dim": 8, "hidden_dim": 8, "attention_dim": 8, "gate": "vector", "tied": True},
    "adaptive-lstm.v1": {"embed_dim": 8, "hidden_dim": 8, "attention_dim": 8},
    "transformer.v1": {"hidden_dim": 8, "layers": 1, "heads": 2, "feedforward_dim": 8},
}
QUICK = {"epochs": 2, "min_steps": 4, "photos": 4, "captions": 2, "warmup": 1, "search": "beam:2"}


def attending() -> Captioner:
    recipe = load_recipe("default").changed({"decoder": "attention-lstm.v1", **SMALL["attention-lstm.v1"]})
    return assemble(recipe, None, TinyEncoder(), ["a dog"], lambda text: None)


def colours() -> Dataset:
    shades = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
    return from_objects(
        [
            {"image": np.full((20, 20, 3), rgb, np.uint8) + np.uint8(i), "caption": f"a {name} wall"}
            for name, rgb in shades.items()
            for i in range(8)
        ]
    )


def test_the_default_recipe_is_the_lstms_and_holds_no_option_of_another() -> None:
    recipe = load_recipe("default")
    assert (recipe.decoder, recipe.decoder_kind) == ("default", "lstm.v1")
    own = {"embed_dim", "hidden_dim", "layers", "dropout", "image", "tied", "project"}
    assert set(recipe.decoder_options()) == own
    assert recipe.gate is None
    assert "gate" not in recipe.values()


@pytest.mark.parametrize("kind", [LSTMDecoder, AttentionLSTMDecoder, AdaptiveLSTMDecoder, TransformerDecoder])
def test_every_option_of_every_decoder_can_be_set(kind: Any) -> None:
    names = {LSTMDecoder: "lstm.v1", AttentionLSTMDecoder: "attention-lstm.v1", AdaptiveLSTMDecoder: "adaptive-lstm.v1"}
    recipe = load_recipe("default").changed({"decoder": names.get(kind, "transformer.v1")})
    own = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    own = {name: value for name, value in own.items() if name not in ("scoring", "start")}  # of imported ones
    assert set(recipe.decoder_options()) == set(own)
    if kind is not LSTMDecoder:
        assert recipe.decoder_options() == own


def test_another_decoder_begins_with_its_own_defaults_and_what_is_named_beside_it() -> None:
    recipe = load_recipe("tiny").changed({"decoder": "attention-lstm.v1", "gate": "vector", "epochs": 7})
    assert (recipe.gate, recipe.hidden_dim, recipe.dropout, recipe.layers) == ("vector", 512, 0.5, None)
    assert recipe.changed({"tied": True}).gate == "vector"
    assert recipe.changed({"decoder": "attention-lstm.v1"}).gate == "vector"
    assert recipe.changed({"decoder": "transformer.v1"}).epochs == 7
    named = load_recipe("tiny").changed({"decoder": "lstm.v1"})  # what "default" is from scratch, with the same options
    assert named.changed({"decoder": "default"}) == load_recipe("tiny")
    assert named.decoder_options() == load_recipe("tiny").decoder_options()


def test_a_file_names_decoder_and_objective(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[decoder]\ndecoder = "transformer.v1"\nlayers = 2\n[objective]\ndoubly_stochastic = 1\n')
    recipe = load_recipe(path)
    assert (recipe.layers, recipe.heads, recipe.doubly_stochastic) == (2, 8, 1.0)
    assert recipe.image is None
    assert load_recipe("default").changed(recipe.values()) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "scalar"}, "gate is no setting of the decoder lstm.v1, which has embed_dim.*image"),
        ({"decoder": "transformer.v1", "image": "first"}, "image is no setting of the decoder transformer.v1"),
        ({"decoder": "adaptive-lstm.v1", "layers": 2}, "layers is no setting of the decoder adaptive-lstm.v1"),
        ({"decoder": "attention-lstm.v1", "gate": "matrix"}, "gate must be one of"),
        ({"decoder": "transformer.v1", "heads": 5}, "hidden_dim must be a multiple of heads"),
        ({"decoder": "transformer.v1", "hidden_dim": 10**9}, "hidden_dim must be a whole number"),
        ({"decoder": "attention-lstm.v1", "deep_output": 1}, "deep_output must be true or false"),
        ({"decoder": "attention-lstm.v1", "dropout": "half"}, "dropout must be a number"),
        ({"decoder": "transformer.v1", "max_positions": 23}, "max_positions = 23 is too few for captions of 24 tokens"),
        ({"decoder": "transformer.v1", "search": "beam:3,max_length=200"}, "max_positions = 128 is too few.*200"),
        ({"doubly_stochastic": -1}, "doubly_stochastic must be a number"),
        ({"gates": "scalar"}, "did you mean 'gate'"),
    ],
    ids=str,
)
def test_what_a_decoder_has_not_or_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_recipe("default").changed(settings)


@pytest.mark.parametrize("name", ["attention-lstm.v9", "lstm", 5, None])
def test_an_unknown_decoder_is_refused(name: Any) -> None:
    with pytest.raises(ComponentError, match="decoder"):
        load_recipe("default").changed({"decoder": name})


def test_a_registered_decoder_of_ones_own_can_be_named() -> None:
    @register_decoder("recipe-test.v1")
    class Mine(LSTMDecoder):
        def __init__(self, vocab_size: int, feature_dim: int, hidden_dim: int = 6) -> None:
            super().__init__(vocab_size, feature_dim, 4, hidden_dim)

    recipe = load_recipe("default").changed({"decoder": "recipe-test.v1"})
    assert recipe.decoder_options() == {"hidden_dim": 6}
    made = assemble(recipe, None, TinyEncoder(), ["a dog"], lambda text: None)
    assert type(made.decoder) is Mine

    @register_decoder("recipe-test-other.v1")
    class Other(nn.Module):
        def __init__(self, size: int, hidden_dim: int) -> None:
            super().__init__()

    with pytest.raises(ArgumentError, match="needs a value of hidden_dim"):
        load_recipe("default").changed({"decoder": "recipe-test-other.v1"})
    with pytest.raises(ArgumentError, match="must take vocab_size and feature_dim"):
        load_recipe("default").changed({"decoder": "recipe-test-other.v1", "hidden_dim": 5})


@pytest.mark.parametrize("name", SMALL)
def test_training_from_cached_grids_gives_a_captioner_and_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    overrides = {**QUICK, "decoder": name, **SMALL[name], "doubly_stochastic": 0.5}

    class StopError(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("step "):
            raise StopError

    def go(output: Path, say: Any) -> Any:
        torch.manual_seed(0)
        options: dict[str, Any] = {"init": None, "encoder": TinyEncoder(), "threads": 1, "show": False}
        return train(colours(), output, overrides=overrides, say=say, **options)

    result = go(tmp_path / "whole", lambda text: None)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["decoder"]
    assert config["name"] == name
    assert {key: config["config"][key] for key in SMALL[name]} == SMALL[name]
    assert (tmp_path / "whole" / "features" / "grid.f16").stat().st_size == 24 * 16 * 8 * 2
    captioner = Captioner.from_pretrained(result.output)
    assert isinstance(captioner.caption(np.full((30, 30, 3), 90, np.uint8)).text, str)

    with pytest.raises(StopError):
        go(tmp_path / "parts", stop)
    go(tmp_path / "parts", lambda text: None)
    weights = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_the_bundled_encoder_returns_its_grid_to_a_decoder_that_looks_at_it() -> None:
    recipe = load_recipe("default")
    plain = assemble(recipe, None, None, ["a dog"], lambda text: None)
    overrides = {"decoder": "attention-lstm.v1", **SMALL["attention-lstm.v1"]}
    looking = assemble(recipe.changed(overrides), None, None, ["a dog"], lambda text: None)
    assert isinstance(looking.encoder, EfficientNetLite)
    assert (plain.encoder.config()["grid"], looking.encoder.config()["grid"]) == (False, True)
    ours, theirs = looking.encoder.state_dict(), plain.encoder.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_encoder_without_a_grid_is_refused_before_anything_is_encoded() -> None:
    recipe = load_recipe("default").changed({"decoder": "transformer.v1"})
    with pytest.raises(ArgumentError, match="build the encoder with grid=True"):
        assemble(recipe, None, EfficientNetLite(image_size=32), ["a dog"], lambda text: None)


def test_a_start_keeps_its_decoder_and_says_so() -> None:
    recipe = load_recipe("default").changed({"decoder": "attention-lstm.v1", **SMALL["attention-lstm.v1"]})
    start = attending()
    heard: list[str] = []
    made = assemble(load_recipe("default"), start, None, ["a cat"], heard.append)
    assert isinstance(made.decoder, AttentionLSTMDecoder)
    assert not any("decoder" in line for line in heard)
    assemble(load_recipe("default").changed({"hidden_dim": 9, "layers": 2}), start, None, ["a cat"], heard.append)
    assert any("its decoder attention-lstm.v1 is kept: hidden_dim=8, no layers" in line for line in heard)
    heard.clear()
    assemble(recipe.changed({"hidden_dim": 9}), start, None, ["a cat"], heard.append)
    assert any("its decoder attention-lstm.v1 is kept: hidden_dim=8" in line for line in heard)


def test_a_start_with_another_decoder_than_the_recipe_asks_for_is_refused() -> None:
    recipe = load_recipe("default").changed({"decoder": "transformer.v1", **SMALL["transformer.v1"]})
    for start, kind in ((tiny_captioner(), "lstm.v1"), (attending(), "attention-lstm.v1")):
        with pytest.raises(ArgumentError, match=rf"names the decoder transformer\.v1 and .* has {kind}; .*init none"):
            assemble(recipe, start, None, ["a dog"], lambda text: None)


def test_naming_a_decoder_is_enough_to_train_it_on_the_bundled_encoder(tmp_path: Path) -> None:
    overrides = {**QUICK, "epochs": 1, "min_steps": 2, "decoder": "adaptive-lstm.v1", **SMALL["adaptive-lstm.v1"]}
    heard: list[str] = []
    options: dict[str, Any] = {"overrides": overrides, "threads": 1, "show": False, "say": heard.append}
    result = train(colours(), tmp_path / "run", **options)
    assert heard[0] == "a new decoder adaptive-lstm.v1, from scratch: the recipe names its decoder"
    captioner = Captioner.from_pretrained(result.output)
    assert isinstance(captioner.decoder, AdaptiveLSTMDecoder)
    assert isinstance(captioner.encoder, EfficientNetLite)
    assert captioner.encoder.grid
    assert "starting from scratch on the encoder default" in (tmp_path / "run" / "README.md").read_text()


def test_doubly_stochastic_attention_without_attention_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"doubly_stochastic = 0\.5 needs a decoder with attention"):
        train(
            colours(),
            tmp_path / "run",
            overrides={**QUICK, "doubly_stochastic": 0.5},
            init=None,
            encoder=TinyEncoder(),
            show=False,
            say=lambda text: None,
        )
    assert not (tmp_path / "run" / "features").exists()
