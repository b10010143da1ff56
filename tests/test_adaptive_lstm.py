from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grids import D, masked_features, real_regions, shaken, words
from showtell.decoders import AdaptiveLSTMDecoder, unroll
from showtell.testing import check_decoder

VARIANTS = [{"tied": True, "hidden_dim": 7}, {"tied": True, "hidden_dim": 5}, {"tied": False, "hidden_dim": 7}]


def make(**options: Any) -> AdaptiveLSTMDecoder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "feature_dim": D, "embed_dim": 5, "hidden_dim": 7, "attention_dim": 4, "dropout": 0.0}
    return AdaptiveLSTMDecoder(**{**sizes, **options})


def knowing_when_to_look(d: AdaptiveLSTMDecoder, regions: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """The paper's equations 5 to 13 for one photo and one caption -> logits (T, V), attention with the sentinel's."""
    size = d.hidden_dim
    v = [(d.regions.weight @ region + d.regions.bias).relu() for region in regions]
    mean = sum(regions) / len(regions)
    v_mean = (d.mean.weight @ mean + d.mean.bias).relu()
    h = c = torch.zeros(size, dtype=regions.dtype)
    logits, maps = [], []
    for token in tokens:
        x = torch.cat([d.words.embedding.weight[token], v_mean])
        from_x = torch.cat([d.from_words.weight, d.from_mean.weight], dim=1)
        cell = nn.LSTMCell(len(x), size, dtype=regions.dtype)
        state = {
            "weight_ih": from_x[: 4 * size],
            "weight_hh": d.from_hidden.weight[: 4 * size],
            "bias_ih": d.from_words.bias[: 4 * size],
            "bias_hh": torch.zeros(4 * size),
        }
        cell.load_state_dict(state)
        gate = from_x[4 * size :] @ x + d.from_hidden.weight[4 * size :] @ h + d.from_words.bias[4 * size :]
        h, c = (t[0] for t in cell(x[None], (h[None], c[None])))
        sentinel = gate.sigmoid() * c.tanh()
        w = d.score.weight[0]
        z = [w @ (d.keys.weight @ region + d.keys.bias + d.query.weight @ h).tanh() for region in v]
        own = w @ (d.sentinel_key.weight @ sentinel + d.sentinel_key.bias + d.query.weight @ h).tanh()
        alpha = torch.stack(z).softmax(0)
        beta = torch.stack([*z, own]).softmax(0)[-1]
        context = sum(a * region for a, region in zip(alpha, v, strict=True))
        out = beta * sentinel + (1 - beta) * context + h
        if isinstance(d.words.bridge, nn.Linear):
            out = d.words.bridge.weight @ out + d.words.bridge.bias
        matrix = d.words.embedding.weight if d.words.output is None else d.words.output.weight
        logits.append(matrix @ out + d.words.bias)
        maps.append(torch.cat([(1 - beta) * alpha, beta[None]]))
    return torch.stack(logits), torch.stack(maps)


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_and_maps_are_those_of_the_equations(options: dict[str, Any], per_image: int) -> None:
    decoder: AdaptiveLSTMDecoder = shaken(make(**options))
    features, tokens = masked_features(), words(3 * per_image, 4)
    with torch.no_grad():
        memory = decoder.prepare(features)
        forced = decoder(tokens, memory, attention=True)
        steps = unroll(decoder, tokens, memory)
        assert forced.attention is not None
        assert features.mask is not None
        for row in range(len(tokens)):
            photo = row // per_image
            logits, maps = knowing_when_to_look(decoder, real_regions(features, photo), tokens[row].tolist())
            torch.testing.assert_close(forced.logits[row], logits, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(steps[row], logits, rtol=1e-10, atol=1e-10)
            found = forced.attention[row]
            torch.testing.assert_close(found[:, features.mask[photo]], maps[:, :-1], rtol=1e-10, atol=1e-10)
            assert not found[:, ~features.mask[photo]].any()
            torch.testing.assert_close(1 - found.sum(1), maps[:, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_laws_hold(options: dict[str, Any], dtype: torch.dtype) -> None:
    check_decoder(make(**options, dropout=0.5).to(dtype))


def test_a_sentinel_that_answers_best_takes_nearly_all_attention() -> None:
    decoder: AdaptiveLSTMDecoder = shaken(make())
    tokens, memory = words(3, 4), decoder.prepare(masked_features())
    with torch.no_grad():
        decoder.score.weight.fill_(1.0)
        decoder.query.weight.zero_()
        memory["keys"].fill_(-30.0)
        decoder.sentinel_key.bias.fill_(30.0)
        maps = decoder(tokens, memory, attention=True).attention
    assert maps is not None
    # tanh is -1 or 1 in all 4 dimensions: energies -4 and 4, so a region has exp(-8) of the sentinel's share.
    assert maps.max().item() == pytest.approx(torch.tensor(-8.0).exp().item(), rel=0.01)


def test_the_forget_gate_starts_open() -> None:
    assert make().from_words.bias.view(5, 7).sum(1).tolist() == [0, 7, 0, 0, 0]


def test_no_step_touches_the_wide_features() -> None:
    decoder = make()
    memory = decoder.prepare(masked_features(torch.float32))
    assert {name: tuple(t.shape[1:]) for name, t in memory.items()} == {
        "regions": (5, 7),
        "keys": (5, 4),
        "gates": (35,),
        "mask": (5,),
    }
