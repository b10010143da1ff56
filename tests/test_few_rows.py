"""The linear layer of a few rows, transposed on a CPU, gives what torch's gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from showtell import Beam, generate
from showtell.decoders import parts
from showtell.testing import tiny_captioner


@pytest.mark.parametrize("shape", [(1,), (2,), (5,), (6,), (3, 1), (1, 4), (0,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_few_rows_by_a_large_matrix_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    x, weight = (torch.randn(*size, 128, generator=generator).to(dtype) for size in (shape, (4096,)))
    bias = torch.randn(4096, generator=generator).to(dtype) if with_bias else None
    with torch.no_grad():
        found = parts.linear(x, weight, bias)
    assert found.shape == (*shape, 4096)
    assert found.is_contiguous()
    assert found.dtype == dtype
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-4 if dtype != torch.bfloat16 else 0.5, rtol=1e-2)


def test_gradients_flow_through_it() -> None:
    x, layer = torch.randn(3, 128, requires_grad=True), parts.Linear(128, 4096)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder", ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"])
def test_captions_stay_the_same(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner(decoder=decoder)
    features, words = captioner.encode(torch.rand(3, 32, 32)), captioner.vocabulary
    found = []
    for large in (1, 1 << 40):
        monkeypatch.setattr(parts, "_LARGE", large)
        found.append(generate(captioner.decoder, features, Beam(3), start=words.start_id, end=words.end_id))
    assert found[0].tokens.equal(found[1].tokens)
    torch.testing.assert_close(found[0].log_probs, found[1].log_probs)


def test_words_of_half_precision_weights_are_scored_in_float32() -> None:
    """Two words whose scores differ by less than bfloat16 can say stay apart."""
    weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.bfloat16)
    hidden, bias = torch.tensor([[8.0, 0.0078125]], dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)
    assert parts.word_scores(hidden, weight, bias).tolist() == [[8.0, 8.0078125]]
    assert parts.word_scores(hidden.double(), weight.double(), bias.double()).dtype == torch.float64
