"""Pictures of where a decoder looked."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from showtell.attention import AttentionMaps
from showtell.caption import Caption
from showtell.errors import ArgumentError, MissingPackageError, NotFoundError
from showtell.plots import _lit, plot_attention
from showtell.testing import tiny_captioner

QUARTERS = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0]])


def quarters(light: Tensor) -> list[float]:
    """The mean of each quarter of a picture (height, width)."""
    rows = [half.chunk(2, dim=1) for half in light.chunk(2, dim=0)]
    return [float(part.mean()) for row in rows for part in row]


def panels(figure: Any) -> list[Tensor]:
    return [torch.as_tensor(np.asarray(axes.images[0].get_array())) for axes in figure.axes if axes.images]


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_light_falls_where_the_decoder_looked_and_dims_with_the_sentinels_share() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.25, 0.0], [0.25] * 4, [0.0] * 4, [0.0, 0.4, 0.2, 0.0]])
    lit = _lit(AttentionMaps(tuple("abcde"), weights, QUARTERS), 60, 40)
    assert lit.shape == (5, 40, 60)
    assert float(lit.min()) >= 0
    assert lit.flatten(1).amax(1).tolist() == pytest.approx([1.0, 0.25, 1.0, 0.0, 0.6], abs=1e-5)
    first, second, even, dark, both = (quarters(each) for each in lit)
    assert first.index(max(first)) == 1
    assert first[1] > 0.6
    assert first[2] < 0.1
    assert second.index(max(second)) == 2
    assert even == pytest.approx([1.0] * 4, abs=0.1)
    assert dark == [0.0] * 4
    assert sorted(range(4), key=lambda place: -both[place])[:2] == [1, 2]
    assert both[1] > 1.5 * both[2]


def test_a_small_box_glows_brighter_than_a_large_one_of_the_same_weight() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.7, 0.4, 0.9, 0.6], [0.2, 0.2, 0.2, 0.8]])  # the last has no area
    lit = _lit(AttentionMaps(("a", "b"), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), boxes), 100, 100)[0]
    assert divmod(int(lit.argmax()), 100)[0] in range(45, 55)
    assert divmod(int(lit.argmax()), 100)[1] in range(75, 85)
    assert 0 < float(lit[50, 25]) < 0.5
    assert float(lit[10, 95]) < 0.05


def test_there_is_a_panel_for_the_photo_and_one_for_each_word() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    photo = np.full((60, 90, 3), 200, np.uint8)
    words = ("a", "$5", "do_g", "<end>")
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.3, 0.3, 0.15, 0.15], [0.0, 0.0, 0.0, 0.0], [0.999, 0.0, 0.0, 0.0]])
    figure = plot_attention(photo, "a $5 do_g $", AttentionMaps(words, weights, QUARTERS), columns=3)
    assert isinstance(figure, figures.Figure)
    assert titles(figure) == ["", "a", "$5 (sentinel 10%)", "do_g (sentinel 100%)", "<end>"]
    assert figure.get_suptitle() == "a $5 do_g $"
    plain, *lit = panels(figure)
    assert all(each.shape == (60, 90, 3) for each in (plain, *lit))
    assert torch.allclose(plain, torch.tensor(200 / 255))
    brightness = [quarters(each.mean(2)) for each in lit]
    assert brightness[0].index(max(brightness[0])) == 1
    assert max(brightness[2]) < min(quarters(plain.mean(2))) / 2
    assert all(0 <= float(each.min()) <= float(each.max()) <= 1 for each in lit)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert Image.open(file).size[0] > 300


@pytest.mark.parametrize("decoder", ["attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"])
def test_a_captioners_own_caption_is_drawn_upright(decoder: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    captioner = tiny_captioner(decoder=decoder)
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    Image.fromarray(np.zeros((80, 1000, 3), np.uint8)).save(tmp_path / "wide.png", exif=exif)
    for source in (tmp_path / "wide.png", (tmp_path / "wide.png").read_bytes(), torch.zeros(3, 1000, 80)):
        caption = captioner.caption(source)
        assert isinstance(caption, Caption)
        maps = captioner.attend(source, caption)
        assert isinstance(maps, AttentionMaps)
        figure = plot_attention(source, caption, maps)
        assert len(panels(figure)) == len(caption.tokens) + 1
        assert {tuple(each.shape) for each in panels(figure)} == {(320, 26, 3)}
        assert figure.get_suptitle() == caption.text


def test_the_smallest_photo_and_the_shortest_caption_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    for shape in ((1, 1, 3), (1, 2000, 3), (2000, 1, 3)):
        for words, weights in (((), torch.zeros(0, 4)), (("a",), torch.ones(1, 4) / 4)):
            figure = plot_attention(np.zeros(shape, np.uint8), "", AttentionMaps(words, weights, QUARTERS))
            assert len(panels(figure)) == len(words) + 1
            assert max(figure.get_size_inches()) < 10, "a photo of one column makes no picture of a million rows"
    none = AttentionMaps(("a",), torch.zeros(1, 0), torch.zeros(0, 4))
    assert titles(plot_attention(np.zeros((4, 4, 3), np.uint8), "a", none)) == ["", "a (sentinel 100%)"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r'pip install "showtell\[viz\]"'):
        plot_attention(np.zeros((4, 4, 3), np.uint8), "a", AttentionMaps(("a",), torch.ones(1, 4) / 4, QUARTERS))


def test_what_doesnt_belong_together_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    photo, maps = np.zeros((4, 4, 3), np.uint8), AttentionMaps(("a",), torch.ones(1, 4) / 4, QUARTERS)
    caption = Caption("a dog", ("a", "dog"), (-1.0, -1.0), -2.0, -2.0)
    with pytest.raises(ArgumentError, match="the caption has 2 tokens and the maps are of 1: a"):
        plot_attention(photo, caption, maps)
    with pytest.raises(ArgumentError, match="not list"):
        plot_attention(photo, "a", [maps])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="a caption is a text or a Caption, not int"):
        plot_attention(photo, 5, maps)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="room for 199 words"):
        plot_attention(photo, "a", replace(maps, words=("a",) * 200, weights=torch.ones(200, 4)))
    for columns in (0, 21, "3"):
        with pytest.raises(ArgumentError, match="columns"):
            plot_attention(photo, "a", maps, columns=columns)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        plot_attention(tmp_path / "absent.jpg", "a", maps)
