from __future__ import annotations

from pathlib import Path

import pytest

from showtell.errors import ArgumentError, ComponentError, NotFoundError
from showtell.training import Recipe, list_recipes, load_recipe, recipe_text


def test_every_bundled_recipe_loads_and_says_what_it_is_for() -> None:
    found = list_recipes()
    assert {"default", "tiny"} <= set(found)
    for name, first_line in found.items():
        assert isinstance(load_recipe(name), Recipe)
        assert len(first_line) > 10


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[optimizer]\nlearning_rate = 1\n[encoder]\ntrain_encoder = ["layer4"]\n')
    recipe = load_recipe(path)
    assert recipe.learning_rate == 1.0
    assert isinstance(recipe.learning_rate, float)
    assert recipe.train_encoder == ("layer4",)
    expected = {**load_recipe("default").values(), "learning_rate": 1.0, "train_encoder": ["layer4"]}
    assert recipe.values() == expected
    assert load_recipe(str(path)) == recipe
    assert load_recipe(recipe) is recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlearing_rate = 1\n", "'learing_rate'; did you mean 'learning_rate'"),
        ("[optimiser]\nlearning_rate = 1\n", r"no section \[optimiser\]; did you mean 'optimizer'"),
        ("[batch]\nlearning_rate = 1\n", r"belongs in \[optimizer\]"),
        ("learning_rate = 1\n", r"belongs in \[optimizer\]"),
        ("decoder = 1\n", "outside a section"),
        ("[optimizer\n", "not TOML"),
        ("[optimizer]\nepochs = 0\n", "epochs must be a whole number"),
        ("[optimizer]\nepochs = 2.5\n", "epochs must be a whole number"),
        ("[optimizer]\nepochs = true\n", "epochs must be a whole number"),
        ("[optimizer]\nlearning_rate = nan\n", "learning_rate must be a number"),
        ('[optimizer]\nprecision = "fp8"\n', "precision must be one of"),
        ('[validation]\nsearch = "beam:0"\n', "mine.toml"),
        ("[validation]\nsearch = 3\n", "search must be"),
        ("[encoder]\ntrain_encoder = 1\n", "train_encoder must be"),
        ("[encoder]\ntrain_encoder = []\n", "train_encoder must be"),
        ("[encoder]\nencoder = 5\n", "encoder must be"),
        ("[decoder]\ntied = 1\n", "tied must be true or false"),
        ("[encoder]\nhead_relu = true\n", "head_relu belongs to a head; give it a width with head_dim"),
        ("[encoder]\nhead_dropout = 0.5\n", "head_dropout belongs to a head"),
        ("[encoder]\nhead_dim = -1\n", "head_dim must be a whole number"),
        ("[encoder]\nhead_dim = false\n", "head_dim must be a whole number"),
        ("[encoder]\nimage_size = 15\n", r"image_size must be a whole number in 16\.\.2048"),
        ("[encoder]\ngrid_size = 14\n", "grid_size = 14 needs a decoder that looks at a grid"),
        ('[encoder]\nresize = "stretch"\n', "resize must be one of"),
        ("[encoder]\npretrained = 0\n", "pretrained must be true or false"),
        ("[decoder]\nproject = false\n[encoder]\nhead_dim = 300\n", "embed_dim what the encoder gives.* 300"),
        ('[decoder]\nproject = false\nimage = "initial-state"\n', "project=False feeds the photo"),
        ('[vocabulary]\nhyphens = "out"\n', "hyphens must be one of"),
        ('[vocabulary]\npunctuation = "out"\n', "punctuation must be one of"),
        ("[encoder]\nbatch_norm = true\n", "did you mean 'head_batch_norm'"),
        ("[batch]\nphotos = " + "[" * 5_000 + "]" * 5_000, "not TOML"),
        ("[batch]\nphotos = " + "9" * 5_000, "not TOML"),
        ("[batch]\nphotos = 0x" + "f" * 5_000, "photos must be a whole number in .* thousands of digits"),
        ("[optimizer]\nlearning_rate = 0x" + "f" * 5_000, "learning_rate must be a number in .* thousands of digits"),
        (f"[{'a' * 5_000}]\nb = 1", r"no section \[a{100}\]"),
        ("#" * 2**20 + "\n", "longer than 1,048,576 bytes"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message) as caught:
        load_recipe(path)
    assert "mine.toml" in str(caught.value)


def test_words_of_any_script_go_through_a_file(tmp_path: Path) -> None:
    recipe = load_recipe("default").changed({"flip_guard": ["बाएं", "左", "\U00020bb7"]})
    path = tmp_path / "mine.toml"
    path.write_text(recipe.toml(), encoding="utf-8")
    assert "बाएं" in recipe.toml()
    assert load_recipe(path) == recipe


def test_a_byte_order_mark_is_no_mistake_and_a_name_that_no_file_can_have_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[optimizer]\nepochs = 7\n")
    assert load_recipe(path).epochs == 7
    with pytest.raises(NotFoundError, match="no recipe file 'aaa"):
        load_recipe("a" * 5_000 + ".toml")


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ComponentError, match="did you mean 'default'"):
        load_recipe("defualt")
    with pytest.raises(NotFoundError, match="nowhere"):
        load_recipe("nowhere/mine.toml")


def test_overrides_are_checked_like_files() -> None:
    recipe = load_recipe("tiny")
    assert recipe.changed({"photos": 4, "search": "greedy"}).photos == 4
    assert recipe.changed({"train_encoder": ["a"]}).train_encoder == ("a",)
    with pytest.raises(ArgumentError, match="did you mean 'photos'"):
        recipe.changed({"fotos": 4})
    with pytest.raises(ArgumentError, match="photos must be"):
        recipe.changed({"photos": "4"})


def test_what_the_encoder_is_called_with_is_only_what_the_recipe_says() -> None:
    recipe = load_recipe("default")
    assert recipe.encoder_options() == {}
    head = {"dim": 7, "batch_norm": False, "relu": True, "dropout": 0.0}
    looking = recipe.changed({"decoder": "attention-lstm.v1", "image_size": 64, "grid_size": 3, "resize": "crop"})
    assert looking.encoder_options() == {"image_size": 64, "grid_size": 3, "resize": "crop"}
    assert recipe.changed({"head_dim": 7, "head_relu": True}).encoder_options() == {"head": head}


def test_the_text_of_a_recipe_is_its_file_and_reads_back(tmp_path: Path) -> None:
    for name in list_recipes():
        path = tmp_path / f"{name}.toml"
        path.write_text(recipe_text(name))
        assert load_recipe(path) == load_recipe(name)
    with pytest.raises(ComponentError, match="did you mean 'tiny'"):
        recipe_text("tinny")
