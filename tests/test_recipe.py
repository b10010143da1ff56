from __future__ import annotations

from pathlib import Path

import pytest

from showtell.errors import ArgumentError, ComponentError, NotFoundError
from showtell.training import Recipe, list_recipes, load_recipe


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
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message) as caught:
        load_recipe(path)
    assert "mine.toml" in str(caught.value)


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
