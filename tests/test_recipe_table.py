"""Each recipe is what its description says: shapes at full size, and a run at a small one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from picture_world import world
from showtell.assembly import shapes_only
from showtell.captioner import Captioner
from showtell.data import Dataset, read_dataset
from showtell.decoders import LSTMDecoder
from showtell.registry import find_component
from showtell.search import as_search
from showtell.training import Recipe, list_recipes, load_recipe, train
from showtell.training.encoding import make_encoder

TABLE = (
    "show-tell-256", "show-tell-inception-v3", "show-attend-tell-resnet152", "show-tell-resnet50-300",
    "show-tell-resnet50-512", "show-tell-coco", "show-attend-tell-coco", "transformer-coco", "flickr8k-default",
    "flickr8k-show-tell", "flickr8k-attention", "flickr8k-fine-tuned", "flickr8k-best", "tiny",
)  # fmt: skip


def test_the_table_is_shipped_whole() -> None:
    assert set(list_recipes()) == {"default", *TABLE}


# --- full size, shapes only -------------------------------------------------------------------------------------------


class Built(NamedTuple):
    recipe: Recipe
    encoder: Any
    decoder: Any


def built(name: str, words: int = 7500, **overrides: Any) -> Built:
    """The parts at full size on the meta device."""
    recipe = load_recipe(name).changed({"pretrained": False, **overrides})
    with shapes_only():
        kind: Any = find_component("decoder", recipe.decoder_kind)
        encoder = make_encoder(recipe, None, grid=kind.has_attention)
        decoder = kind(vocab_size=words, feature_dim=encoder.feature_dim, **recipe.decoder_options())
        return Built(recipe, encoder, decoder)


def images(parts: Built, count: int | None = None) -> Tensor:
    spec = parts.encoder.image_spec
    return torch.empty(count or parts.recipe.photos, 3, spec.height, spec.width, device="meta")


def tokens(rows: int, steps: int) -> Tensor:
    return torch.zeros(rows, steps, dtype=torch.int64, device="meta")


def lstm_inputs(parts: Built, steps: int) -> tuple[Tensor, Tensor]:
    """What the LSTM reads in teacher forcing, and the logits."""
    seen: list[Tensor] = []
    handle = parts.decoder.lstm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    memory = parts.decoder.prepare(parts.encoder(images(parts)))
    logits = parts.decoder(tokens(parts.recipe.photos, steps), memory).logits
    handle.remove()
    return seen[0], logits


def test_show_tell_256_sets_one_feature_of_256_before_forty_words() -> None:
    parts = built("show-tell-256")
    recipe = parts.recipe
    assert parts.encoder.name == "resnet50"
    assert parts.encoder.projection.linear.weight.shape == (256, 2048)
    assert (parts.encoder.projection.norm, parts.encoder.projection.relu) == (None, False)
    assert parts.encoder(images(parts)).pooled.shape == (8, 256)
    assert parts.decoder.embedding(tokens(8, 40)).shape == (8, 40, 256)
    read, logits = lstm_inputs(parts, steps=40)
    assert read.shape == (8, 41, 256)
    assert logits.shape == (8, 40, 7500)
    assert parts.decoder.lstm.hidden_size == 256
    assert parts.decoder.output.weight.shape == (7500, 256)
    assert list(parts.decoder.projection.parameters()) == []
    assert (recipe.max_length, recipe.photos * recipe.captions, recipe.train_encoder) == (40, 8, True)
    assert (recipe.search, recipe.punctuation, recipe.hyphens) == ("greedy:max_length=40", "keep", "apart")


def test_show_tell_256_has_about_7500_words_on_flickr8k(shared: Path) -> None:
    from showtell.vocabulary import Vocabulary

    recipe = load_recipe("show-tell-256")
    data = json.loads((shared / "flickr8k" / "dataset_flickr8k.json").read_text(encoding="utf-8"))
    captions = [s["raw"] for photo in data["images"] if photo["split"] != "val" for s in photo["sentences"]]
    words = Vocabulary.build(
        captions, min_count=recipe.min_count, punctuation=recipe.punctuation, hyphens=recipe.hyphens  # type: ignore[arg-type]
    )  # fmt: skip
    assert 7400 <= len(words) <= 7600


def test_inception_reads_224_pixels_in_batches_of_32_through_a_layer_relu_and_dropout() -> None:
    parts = built("show-tell-inception-v3")
    assert images(parts).shape == (32, 3, 224, 224)
    assert parts.encoder.name == "inception_v3"
    head = parts.encoder.projection
    assert (head.linear.in_features, head.relu, head.dropout, head.norm) == (2048, True, 0.5, None)
    assert parts.encoder.trunk_frozen
    read, _ = lstm_inputs(parts, steps=20)
    assert read.shape == (32, 21, 256)
    trained = built("show-tell-inception-v3", train_encoder=True).recipe
    assert trained.train_encoder is True
    beside = built("show-tell-inception-v3", image="every-step")
    assert lstm_inputs(beside, steps=20)[0].shape == (32, 20, 2 * 256)
    tensorflow = built("show-tell-inception-v3", encoder="inception-v3-tf:anywhere.safetensors")
    assert lstm_inputs(tensorflow, steps=20)[0].shape == (32, 21, 256)


def test_show_attend_tell_looks_at_14_by_14_cells_of_2048() -> None:
    parts = built("show-attend-tell-resnet152")
    assert (parts.encoder.name, parts.encoder.projection) == ("resnet152", None)
    features = parts.encoder(images(parts, 2))
    assert features.grid.shape == (2, 14 * 14, 2048)
    memory = parts.decoder.prepare(features)
    assert memory["h"].shape == memory["c"].shape == (2, 512)
    forced = parts.decoder(tokens(4, 7), memory, attention=True)
    assert (forced.logits.shape, forced.attention.shape) == ((4, 7, 7500), (4, 7, 196))
    assert parts.recipe.search.startswith("beam")
    assert parts.recipe.doubly_stochastic == pytest.approx(1 / 196, rel=0.01)
    assert parts.recipe.train_encoder is False
    assert built("show-attend-tell-resnet152", doubly_stochastic=0, train_encoder=["layer4"]).recipe.train_encoder


def test_resnet50_300_prepends_a_normalised_feature_of_300_to_several_layers() -> None:
    parts = built("show-tell-resnet50-300")
    trunk = parts.encoder.trunk(images(parts))
    assert trunk.pooled.shape == (32, 2048)
    head = parts.encoder.projection
    assert (head.linear.out_features, head.norm.num_features, head.relu) == (300, 300, True)
    assert parts.encoder(images(parts)).pooled.shape == (32, 300)
    read, logits = lstm_inputs(parts, steps=11)
    assert (read.shape, logits.shape) == ((32, 12, 300), (32, 11, 7500))
    assert parts.decoder.lstm.num_layers == 2
    assert parts.recipe.search.startswith("greedy")
    assert built("show-tell-resnet50-300", prefixes=True).recipe.prefixes is True


def test_resnet50_512_is_frozen_and_has_one_layer_of_512() -> None:
    parts = built("show-tell-resnet50-512")
    recipe = parts.recipe
    assert parts.encoder.trunk_frozen
    assert parts.decoder.projection.weight.shape == (512, 2048)
    assert parts.decoder.embedding.weight.shape == parts.decoder.output.weight.shape == (7500, 512)
    assert (parts.decoder.lstm.num_layers, parts.decoder.lstm.hidden_size) == (1, 512)
    assert lstm_inputs(parts, steps=9)[0].shape == (64, 10, 512)
    # Five captions a photo, one of them an epoch: three times through all.
    assert (recipe.photos * recipe.captions, recipe.epochs) == (64, 3 * 5)


@pytest.mark.parametrize("name", TABLE)
def test_our_own_go_on_with_self_critical_training_and_the_others_do_not(name: str) -> None:
    ours = name.endswith("-coco") or name in ("flickr8k-best", "flickr8k-default", "flickr8k-show-tell")
    assert (load_recipe(name).self_critical_epochs > 0) == ours


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("show-tell-coco", None),
        ("show-attend-tell-coco", 81),
        ("transformer-coco", 81),
        ("flickr8k-best", 49),
        ("flickr8k-attention", 49),
        ("flickr8k-fine-tuned", 49),
    ],
)
def test_our_own_recipes_build_at_full_size(name: str, grid: int | None) -> None:
    parts = built(name, words=9500)
    features = parts.encoder(images(parts, 2))
    assert parts.encoder.trunk_frozen
    if grid is None:
        assert features.grid is None
    else:
        assert features.grid.shape[1] == grid
    assert parts.decoder(tokens(6, 5), parts.decoder.prepare(features)).logits.shape == (6, 5, 9500)


def test_flickr8k_default_makes_the_bundled_layout() -> None:
    bundled = Captioner.default()
    parts = built("flickr8k-default", words=len(bundled.vocabulary))
    assert parts.encoder.config() == bundled.encoder.config()
    assert parts.decoder.config() == bundled.decoder.config()
    assert bundled.search == as_search(load_recipe("flickr8k-default").search)


# --- small size, whole runs -------------------------------------------------------------------------------------------

SMALL = {
    "encoder": "torchvision:mobilenet_v3_small", "pretrained": False, "image_size": 32, "epochs": 1, "min_steps": 3,
    "photos": 4, "captions": 2, "warmup": 0, "precision": "fp32", "val_photos": 3, "evaluate_every_epochs": 1,
    "self_critical_samples": 2, "encoder_start_epoch": 0,
}  # fmt: skip
SIZES = {
    "embed_dim": 8,
    "hidden_dim": 8,
    "attention_dim": 8,
    "heads": 2,
    "layers": 2,
    "feedforward_dim": 8,
    "head_dim": 8,
    "grid_size": 3,
    "self_critical_epochs": 1,
}


def reduced(name: str) -> dict[str, Any]:
    """What makes the recipe small and leaves its layout alone."""
    recipe = load_recipe(name)
    sizes = {key: min(value, SIZES[key]) for key, value in recipe.values().items() if key in SIZES and value}
    tuned = ("show-attend-tell-resnet152", "flickr8k-fine-tuned")
    named = {"train_encoder": ["features.12"]} if name in tuned else {}
    return {**SMALL, **sizes, **named}


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return world(train=12, val=3)


def run_it(name: str, data: Dataset, output: Path, overrides: dict[str, Any]) -> tuple[Captioner, dict[str, Any]]:
    result = train(
        data, output, recipe=name, overrides=overrides, threads=1, show=False, device="cpu", say=lambda text: None
    )
    row = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == result.steps
    assert np.isfinite(row["train_loss"])
    return Captioner.from_pretrained(result.output), row


def assert_a_copy_says_the_same(captioner: Captioner, photo: Any, folder: Path) -> None:
    said = captioner.caption(photo)
    captioner.save_pretrained(folder)
    again = Captioner.from_pretrained(folder).caption(photo)
    assert (again.text, again.log_prob) == (said.text, said.log_prob)


@pytest.mark.parametrize("name", TABLE)
def test_each_recipe_trains_captions_saves_and_loads(name: str, pictures: Dataset, tmp_path: Path) -> None:
    overrides = reduced(name)
    captioner, row = run_it(name, pictures, tmp_path / "run", overrides)
    recipe = load_recipe(name).changed(overrides)
    assert row["step"] == 3 * (1 + recipe.self_critical_epochs)
    assert ("train_reward" in row) == bool(recipe.self_critical_epochs)
    config = captioner.decoder.config()
    assert {key: config[key] for key in recipe.decoder_options()} == recipe.decoder_options()
    assert captioner.encoder.config()["head"] == recipe.encoder_options().get("head")
    assert captioner.encoder.config()["grid_size"] == recipe.encoder_options().get("grid_size")
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert_a_copy_says_the_same(captioner, photo, tmp_path / "copy")


@pytest.mark.parametrize("option", [{"prefixes": True}, {"image": "every-step"}, {"train_encoder": True}], ids=str)
def test_the_switches_of_the_descriptions_train_too(option: dict[str, Any], pictures: Dataset, tmp_path: Path) -> None:
    overrides = {**reduced("show-tell-resnet50-300"), **option, "photos": 3, "captions": 1}
    captioner, _ = run_it("show-tell-resnet50-300", pictures, tmp_path / "run", overrides)
    assert isinstance(captioner.decoder, LSTMDecoder)
    assert captioner.encoder.config()["trainable"] == option.get("train_encoder", False)


def test_a_recipe_that_names_its_encoder_starts_anew_and_says_so(pictures: Dataset, tmp_path: Path) -> None:
    heard: list[str] = []
    overrides = reduced("show-tell-resnet50-512")
    train(pictures, tmp_path / "run", recipe="show-tell-resnet50-512", overrides=overrides, threads=1, show=False,
          say=heard.append)  # fmt: skip
    assert heard[0] == (
        "the encoder torchvision:mobilenet_v3_small and a new decoder, from scratch: the recipe names its encoder"
    )
    assert (
        "starting from scratch on the encoder torchvision:mobilenet_v3_small with random weights"
        in (tmp_path / "run" / "README.md").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_each_recipe_trains_fifty_steps_on_real_photographs_on_its_own_backbone(
    name: str, shared: Path, tmp_path: Path
) -> None:
    whole = read_dataset(shared / "flickr8k" / "dataset_flickr8k.json")
    data = Dataset((*whole.split("train")[:24], *whole.split("val")[:4]))
    recipe = load_recipe(name)
    parts = 2 if recipe.self_critical_epochs else 1
    small: dict[str, Any] = {
        "photos": 4, "captions": 1, "epochs": 1, "min_steps": 50 // parts, "warmup": 5, "val_photos": 4,
        "self_critical_epochs": parts - 1, "evaluate_every_epochs": 1, "encoder_start_epoch": 0,
    }  # fmt: skip
    if name != "tiny":  # which starts from the bundled captioner
        small |= {"pretrained": False, "image_size": 75 if "inception" in name else 64}
    captioner, row = run_it(name, data, tmp_path / "run", small)
    assert row["step"] == 50
    assert ("train_reward" in row) == (parts == 2)
    words = len(captioner.vocabulary)
    assert row["val_teacher_forced_loss"] < np.log(words), "no better than guessing among all words"
    assert_a_copy_says_the_same(captioner, whole.split("val")[0].image, tmp_path / "copy")
