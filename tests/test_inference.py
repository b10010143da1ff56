"""for_inference: the same captions from a copy without batch norms; what can't be folded stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from showtell import ArgumentError, Captioner, Features
from showtell.encoders.torchvision import TorchvisionEncoder
from showtell.inference import fold_batch_norms
from showtell.testing import TinyEncoder, tiny_captioner


def lived_in(module: nn.Module) -> nn.Module:
    """Batch norms as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias):
                assert tensor is not None
                tensor.data.normal_(0, 0.3, generator=generator)
            for tensor in (part.running_var, part.weight):
                assert tensor is not None
                tensor.data.uniform_(0.5, 2, generator=generator)
    return module.eval()


class Net(nn.Module):
    """Three convolutions with norms: an own one, one that is read twice, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1, bias=bias) for bias in (True, False, True))
        self.norm_a, self.norm_b, self.norm_c = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.a(x)).relu()
        y = self.b(x)
        x = self.norm_b(y) + y
        return self.norm_c(self.c(self.norm_c(self.c(x))))


class Choosy(Net):
    """Decides by values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_only_what_belongs_together_is_folded_and_the_numbers_stay() -> None:
    net, x = lived_in(Net()).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = net(x)
    assert fold_batch_norms(net) == 1
    assert [type(part).__name__ for part in (net.norm_a, net.norm_b, net.norm_c)] == [
        "Identity",
        "BatchNorm2d",
        "BatchNorm2d",
    ]
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    assert fold_batch_norms(net) == 0, "again: nothing left"


@pytest.mark.parametrize("net", [Choosy().eval(), Net().train(), nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))])
def test_what_cannot_be_folded_stays(net: nn.Module) -> None:
    before = [type(part) for part in net.modules()]
    assert fold_batch_norms(net) == 0
    assert [type(part) for part in net.modules()] == before


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019): whatever the weight's scale, the same comes out."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        dims = (1, 2, 3)
        weight = (self.weight - self.weight.mean(dims, keepdim=True)) / self.weight.std(dims, keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias)


@pytest.mark.parametrize(
    "conv",
    [
        Standardised(3, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
    ids=["standardised", "weight norm", "spectral norm"],
)
def test_a_convolution_that_makes_its_weight_anew_keeps_its_norm(conv: nn.Module) -> None:
    net = lived_in(nn.Sequential(conv, nn.BatchNorm2d(4)))
    x = torch.rand(2, 3, 8, 8)
    expected = net(x)
    assert fold_batch_norms(net) == 0
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (1, 3), stride=2, groups=2, bias=False),
        nn.Conv2d(4, 4, 5, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 4, 1).bfloat16(),
    ],
    ids=str,
)
def test_every_plain_kind_of_convolution_is_folded(conv: nn.Conv2d) -> None:
    net = lived_in(nn.Sequential(conv, nn.BatchNorm2d(4).to(conv.weight.dtype)))
    x = torch.rand(2, 4, 9, 9).to(conv.weight.dtype)
    expected = net(x)
    assert fold_batch_norms(net) == 1
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5 if x.dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "vit_b_16"])
def test_backbones_give_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    encoder = lived_in(TorchvisionEncoder(name, height=224 if name == "vit_b_16" else 64)).double()
    photos = torch.rand(2, 3, *(encoder.image_spec.height,) * 2)
    with torch.no_grad():
        expected = encoder(photos).pooled
        fold_batch_norms(encoder.backbone)
        torch.testing.assert_close(encoder(photos).pooled, expected, rtol=1e-9, atol=1e-9)


class Scaled(nn.Conv2d):
    """Not linear in its weight: twice the weight gives the same maps."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return nn.functional.conv2d(input, self.weight / self.weight.norm(), self.bias)


class Padded(nn.Conv2d):
    """Linear in its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(nn.functional.pad(input, (1, 1, 1, 1)))


class Reading(nn.Module):
    """Reads a folded module's weight elsewhere."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.conv, self.norm, self.of = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), of

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight.mean() if self.of == "conv" else self.norm.weight.mean()
        return self.norm(self.conv(x)) * weight


class Keeping(nn.Module):
    """Keeps the shape it saw first, as a table of positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.seen: list[object] = []
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        return self.norm(self.conv(x))


def hooked(which: int, before: bool) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    if before:
        net[which].register_forward_pre_hook(lambda _, given: (2 * given[0],))
    else:
        net[which].register_forward_hook(lambda _, __, found: 2 * found)
    return net


@pytest.mark.parametrize(
    ("net", "folds"),
    [
        *[(hooked(which, before), 0) for which in (0, 1) for before in (False, True)],
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), 0),
        (nn.Sequential(prune.random_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.5), nn.BatchNorm2d(3)), 0),
        (nn.Sequential(Scaled(3, 3, 1), nn.BatchNorm2d(3)), 0),
        (nn.Sequential(Padded(3, 3, 3), nn.BatchNorm2d(3)), 1),
        (Reading("conv"), 0),
        (Reading("norm"), 0),
        (Keeping(), 1),
    ],
)
def test_hooks_computed_weights_and_foreign_convolutions_keep_their_numbers(net: nn.Module, folds: int) -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = lived_in(net)(x)
        assert fold_batch_norms(net) == folds
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    if isinstance(net, Keeping):
        assert net.seen == [x.shape, x.shape], "folding leaves nothing behind"
        assert net.calls == 2


class Odd(TinyEncoder):
    """Weights of four and five dimensions that are no convolution's, and a view that takes contiguous maps only."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.deep = nn.Parameter(torch.rand(1, 4, 4, 8)), nn.Conv3d(1, 1, 1)
        self.rows = nn.Linear(128, 16)

    def trunk(self, images: Tensor) -> Features:
        maps = self.body(self.deep(images.unsqueeze(1)).squeeze(1))
        maps = maps + self.table.view(1, 16, 8).transpose(1, 2).reshape(1, 8, 4, 4)
        return Features(pooled=self.rows(maps.view(len(maps), -1)))

    def head(self, features: Features) -> Features:
        return features


def test_an_encoder_that_takes_its_maps_in_one_layout_only_keeps_it() -> None:
    tiny, photo = tiny_captioner(), torch.rand(3, 32, 32)
    captioner = Captioner(Odd(), tiny.decoder, tiny.vocabulary)
    fast = captioner.for_inference()
    torch.testing.assert_close(fast.encode(photo).pooled, captioner.encode(photo).pooled)


def test_a_captioner_built_from_parts_of_a_copy_is_not_saved_either(tmp_path: Path) -> None:
    tiny = tiny_captioner()
    with pytest.raises(ArgumentError, match="save the one it was made from"):
        Captioner(tiny.for_inference().encoder, tiny.decoder, tiny.vocabulary).save_pretrained(tmp_path / "fast")
    tiny.save_pretrained(tmp_path / "slow")


def test_the_bundled_captioner_says_the_same_and_its_copy_is_not_saved(tmp_path: Path) -> None:
    captioner = Captioner.default()
    photos = sorted((Path(__file__).parent.parent / "examples" / "images").glob("*.jpg"))
    fast = captioner.for_inference()
    for slow, quick in zip(captioner.caption(photos), fast.caption(photos), strict=True):
        assert slow.text == quick.text
        assert slow.log_prob == pytest.approx(quick.log_prob, abs=1e-4)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in captioner.modules()) == 49
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
    with pytest.raises(ArgumentError, match="save the one it was made from"):
        fast.save_pretrained(tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


def test_the_copys_lstm_is_laid_out_for_cudnn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, flattened = tiny_captioner(), []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda self: flattened.append(self))
    fast = captioner.for_inference()
    assert flattened == [fast.decoder.lstm]  # type: ignore[attr-defined]
