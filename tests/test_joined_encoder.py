"""Two encoders side by side: features, saving, a captioner that gets a second one, and runs that begin so."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from showtell.captioner import Captioner
from showtell.cli import main
from showtell.decoders import LSTMDecoder
from showtell.encoders import create_untrained
from showtell.encoders.joined import JoinedEncoder
from showtell.errors import ArgumentError, FormatError, RunError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features
from showtell.registry import register_encoder
from showtell.testing import TinyEncoder, check_encoder, tiny_captioner
from showtell.training import load_recipe
from showtell.training.about import about_run
from showtell.training.joining import with_encoder
from test_run import evaluations, go, write_photos

PHOTOS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
DECODERS = ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"]


def lite(variant: int, **options: Any) -> Any:
    settings = {"image_size": 64, "grid": True, "head": {"dim": 6 + variant, "batch_norm": True}, **options}
    return create_untrained(f"efficientnet-lite{variant}", **settings)


@register_encoder("mean-of-colours.v1")
class Mean(nn.Module):
    """An encoder without trunk, head or cells."""

    feature_dim = 3
    image_spec = ImageSpec(32, 32)

    def forward(self, images: torch.Tensor) -> Features:
        return Features(images.mean((2, 3)))

    def config(self) -> dict[str, Any]:
        return {}


class Unnamed(Mean):
    """One that no saved captioner can name."""


def test_features_of_the_parts_lie_side_by_side() -> None:
    a, b = TinyEncoder(feature_dim=5), TinyEncoder(feature_dim=7)
    joined = JoinedEncoder([a, b])
    assert (joined.feature_dim, joined.trunk_dims) == (12, [8, 8])
    found, of_a, of_b = joined(PHOTOS), a(PHOTOS), b(PHOTOS)
    assert torch.equal(found.pooled, torch.cat([of_a.pooled, of_b.pooled], 1))
    assert torch.equal(found.grid, torch.cat([of_a.grid, of_b.grid], 2))
    assert torch.equal(found.boxes, of_a.boxes)
    assert joined.trunk(PHOTOS).pooled.shape == (3, 16)


@pytest.mark.parametrize("grid", [True, False])
def test_it_keeps_the_laws_of_encoders(grid: bool) -> None:
    check_encoder(JoinedEncoder([TinyEncoder(4), TinyEncoder(9), TinyEncoder(2)]))
    joined = JoinedEncoder([lite(0, grid=grid), lite(2, grid=grid)])
    assert (joined.feature_dim, joined.trunk_dims) == (14, [1280, 1280])
    check_encoder(joined)
    more = JoinedEncoder([joined, lite(1, grid=grid)])
    assert len(more.parts) == len(more.trunk_dims) == 3
    check_encoder(more)
    check_encoder(JoinedEncoder([Mean(), Mean()]))


def test_a_captioner_with_one_opens_again_without_a_photo_being_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_encoder(tiny_captioner(decoder="attention-lstm.v1"), tiny_captioner(seed=1))
    made.save_pretrained(tmp_path / "both", weights_dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(TinyEncoder, "trunk", lambda self, images: pytest.fail("a photo was seen"))
        again = Captioner.from_pretrained(tmp_path / "both")
    assert isinstance(again.encoder, JoinedEncoder)
    assert again.encoder.trunk_dims == [8, 8]
    assert again.caption(list(PHOTOS)) == made.caption(list(PHOTOS))
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    one = TinyEncoder()
    for parts in ([one], [], one, None, "ab"):
        with pytest.raises(ArgumentError, match="at least two encoders"):
            JoinedEncoder(parts)  # type: ignore[arg-type]
    for part in (nn.Linear(2, 2), TinyEncoder, 3):
        with pytest.raises(ArgumentError, match=r"follows showtell\.Encoder"):
            JoinedEncoder([one, part])  # type: ignore[list-item]
    for entry in ({}, {"name": None, "config": {}}, {"name": "tiny.v1"}, {"name": "tiny.v1", "config": 3}):
        with pytest.raises(ArgumentError, match="registered"):
            JoinedEncoder([one, entry], [8, 8])
    for parts, dims, message in (
        ([one] * 9, None, "at most 8"),
        ([one, {"name": "tiny.v1", "config": {}}], None, "trunk_dims goes with"),
        ([one, {"name": "joined.v1", "config": {}}], [8, 8], "aren't joined themselves"),
        ([one, one], 8, "trunk_dims is a list"),
    ):
        with pytest.raises(ArgumentError, match=message):
            JoinedEncoder(parts, dims)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="TinyEncoder gives 8 numbers in place of the 7"):
        JoinedEncoder([one, TinyEncoder()], [7, 9])(PHOTOS)
    with pytest.raises(ArgumentError, match="Unnamed has no registered name"):
        with_encoder(tiny_captioner(), Captioner(Unnamed(), LSTMDecoder(25, 3), tiny_captioner().vocabulary))
    for pair in (
        (tiny_captioner().for_inference(), tiny_captioner()),
        (tiny_captioner(), tiny_captioner().for_inference()),
    ):
        with pytest.raises(ArgumentError, match="for_inference"):
            with_encoder(*pair)
    for dims in ([8], [8, 8, 8], [8, 0], [8, "8"]):
        with pytest.raises(ArgumentError, match="trunk_dims"):
            JoinedEncoder([one, TinyEncoder()], trunk_dims=dims)
    with pytest.raises(ArgumentError, match=r"TinyEncoder takes ImageSpec\(.*32.*EfficientNetLite ImageSpec\(.*64"):
        JoinedEncoder([one, lite(0)])
    with pytest.raises(ArgumentError, match="TinyEncoder 16 cells, Mean no cells"):
        JoinedEncoder([one, Mean()])(PHOTOS)
    with pytest.raises(ArgumentError, match="cells"):
        JoinedEncoder([lite(0, grid_size=1), lite(2)])(torch.rand(1, 3, 64, 64))
    with pytest.raises(ArgumentError, match="8 numbers in place of the 16"):
        JoinedEncoder([one, TinyEncoder()]).head(one.trunk(PHOTOS))
    unnamed = Captioner(JoinedEncoder([Mean(), Unnamed()]), LSTMDecoder(25, 6), tiny_captioner().vocabulary)
    unnamed.save_pretrained(tmp_path / "unnamed")
    with pytest.raises(FormatError, match="registered"):
        Captioner.from_pretrained(tmp_path / "unnamed")


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_captioner_says_the_same_with_a_second_encoder_and_learns_to_use_it(decoder: str) -> None:
    captioner, other = tiny_captioner(decoder=decoder), tiny_captioner(seed=1)
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    random = torch.get_rng_state()
    made = with_encoder(captioner, other)
    assert torch.equal(torch.get_rng_state(), random)
    said = [[c.text for c in one.caption(list(PHOTOS), search="beam:3")] for one in (made, captioner)]
    assert said[0] == said[1]
    assert made.vocabulary is captioner.vocabulary
    assert made.search == captioner.search
    new = made.decoder.state_dict()
    longer = [name for name, tensor in new.items() if tensor.shape != before[f"decoder.{name}"].shape]
    assert longer
    tokens = captioner.vocabulary.encode_batch(["a dog runs", "a small dog", "two men ride"])
    made(PHOTOS, torch.tensor(tokens)).logits.square().sum().backward()
    for name, parameter in cast(nn.Module, made.decoder).named_parameters():
        if name in longer:
            assert parameter.grad is not None
            assert float(parameter.grad[..., -16:].abs().max()) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in captioner.state_dict().items())


def test_batch_norms_of_both_are_folded_for_inference() -> None:
    words = tiny_captioner().vocabulary
    one, other = (Captioner(lite(v), LSTMDecoder(len(words), 6 + v, embed_dim=4, hidden_dim=4), words) for v in (0, 1))
    made = with_encoder(one.eval(), other)
    assert not made.training
    fast = made.for_inference()
    left = [sum(isinstance(m, nn.BatchNorm2d) for m in cast(nn.Module, x.encoder).modules()) for x in (made, fast)]
    assert left[0] > 80
    assert left[1] == 0
    photo = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(fast.encode_pixels(photo).pooled, made.encode_pixels(photo).pooled, rtol=1e-3, atol=1e-3)


def test_the_precision_stays() -> None:
    made = with_encoder(tiny_captioner().double(), tiny_captioner(seed=1).double())
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float64}


def test_a_decoder_that_cannot_take_more_features_is_named() -> None:
    broken = tiny_captioner()
    nn.init.constant_(next(cast(nn.Module, broken.decoder).parameters()), float("nan"))
    with pytest.raises(ArgumentError, match="what it says changes"):
        with_encoder(broken, tiny_captioner())
    words = tiny_captioner().vocabulary
    bare = Captioner(TinyEncoder(8), LSTMDecoder(len(words), 8, embed_dim=8, project=False), words)
    with pytest.raises(ArgumentError, match="LSTMDecoder can't take the features of a second encoder"):
        with_encoder(bare, tiny_captioner())

    class Normed(LSTMDecoder):
        """Features are compared with each other, so more of them change all."""

        def prepare(self, features: Features) -> Any:
            return super().prepare(features._replace(pooled=features.pooled.softmax(1)))

    for seed in range(10):
        torch.manual_seed(seed)
        normed = Captioner(TinyEncoder(8), Normed(len(words), 8, embed_dim=4), words)
        with pytest.raises(ArgumentError, match="Normed can't take the features of a second encoder: what it says"):
            with_encoder(normed, tiny_captioner())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def test_a_run_begins_with_the_encoder_of_another_beside(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny_captioner(seed=seed, decoder="attention-lstm.v1").save_pretrained(tmp_path / f"{seed}")
    options: dict[str, Any] = {"init": tmp_path / "0", "overrides": {"epochs": 1, "min_steps": 3}}
    go(photos, tmp_path / "alone", **options)
    result = go(photos, tmp_path / "both", beside=tmp_path / "1", **options)
    made = Captioner.from_pretrained(result.output / "checkpoints" / "step-00000003")
    assert isinstance(made.encoder, JoinedEncoder)
    assert "with the encoder of one more beside its own" in (tmp_path / "both" / "README.md").read_text()
    assert (
        "weights of the encoder beside: as of the captioner it came from"
        in (tmp_path / "both" / "README.md").read_text()
    )
    for seed, part in enumerate(made.encoder.parts):
        own: Any = Captioner.from_pretrained(tmp_path / f"{seed}").encoder
        assert torch.equal(cast(Any, part).body[0].weight, own.body[0].weight.half().float())  # as runs save them
    alone, both = (evaluations(tmp_path / name) for name in ("alone", "both"))
    assert both[0]["val_cider_d"] == alone[0]["val_cider_d"]
    assert both[1]["train_loss"] != alone[1]["train_loss"]
    heard: list[str] = []
    go(photos, tmp_path / "both", heard, beside=tmp_path / "1", **options)
    assert any("this run is finished" in line for line in heard)
    with pytest.raises(RunError, match="init: was"):
        go(photos, tmp_path / "both", **options)
    with pytest.raises(RunError, match="init: was"):
        go(photos, tmp_path / "both", beside=tmp_path / "0", **options)


def test_no_licence_is_named_for_two(tmp_path: Path) -> None:
    tiny = tiny_captioner()
    tiny._card = "---\nlicense: apache-2.0\n---\n"
    plan = load_recipe("default")
    for beside, expected in ((False, "apache-2.0"), (True, None)):
        about = about_run(
            None, "", [], [], init=tiny, start=tiny, beside=beside, encoder=None, plan=plan, data_license=None
        )
        assert about.license == expected


def test_cells_elsewhere_are_refused() -> None:
    class Mirrored(TinyEncoder):
        """The same cells, from right to left."""

        def trunk(self, images: torch.Tensor) -> Features:
            made = super().trunk(images)
            assert made.boxes is not None
            return made._replace(boxes=made.boxes.flip(1))

    with pytest.raises(ArgumentError, match="elsewhere"):
        JoinedEncoder([TinyEncoder(), Mirrored()])(PHOTOS)


def test_the_trunks_stay_as_they_are(photos: Path, tmp_path: Path) -> None:
    for trained in (True, ["parts.1.body"]):
        with pytest.raises(ArgumentError, match="joined encoders stay as they are"):
            go(
                photos,
                tmp_path / "run",
                init=tiny_captioner(),
                beside=tiny_captioner(),
                overrides={"train_encoder": trained},
            )


def test_an_encoder_beside_needs_a_captioner_to_start_from(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArgumentError, match="this run starts from scratch"):
        go(photos, tmp_path / "run", init=None, beside=tiny_captioner())
    tiny_captioner().save_pretrained(tmp_path / "one")
    with pytest.raises(ArgumentError, match="output of this very run"):
        go(photos, tmp_path / "one", init=tiny_captioner(), beside=tmp_path / "one")
    command = ["train", "--data", str(photos), "--output", str(tmp_path / "run"), "--beside", str(tmp_path / "one")]
    assert main([*command, "--init", "none"]) == 2
    assert "this run starts from scratch" in capsys.readouterr().err
    assert main(command) == 2
    assert "joined encoders take the same photos" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
