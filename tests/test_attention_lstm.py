from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grids import D, masked_features, real_regions, shaken, words
from showtell.decoders import AttentionLSTMDecoder, unroll
from showtell.testing import check_decoder

GATES = ["scalar", "vector", "none"]
VARIANTS = [
    {"gate": gate, "deep_output": deep, "tied": tied, "hidden_dim": hidden}
    for gate, (deep, tied, hidden) in itertools.product(
        GATES, [(True, True, 7), (True, False, 7), (False, True, 7), (False, True, 5), (False, False, 7)]
    )
]


def make(**options: Any) -> AttentionLSTMDecoder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "feature_dim": D, "embed_dim": 5, "hidden_dim": 7, "attention_dim": 4, "dropout": 0.0}
    return AttentionLSTMDecoder(**{**sizes, **options})


def show_attend_and_tell(d: AttentionLSTMDecoder, regions: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """The paper's equations for one photo and one caption, region by region -> logits (T, V), maps (T, L)."""
    mean = torch.zeros(D, dtype=regions.dtype)
    for region in regions:
        mean = mean + region / len(regions)
    start = (d.start.weight @ mean + d.start.bias).tanh()
    h, c = start[: d.hidden_dim], start[d.hidden_dim :]
    logits, maps = [], []
    for token in tokens:
        y = d.words.embedding.weight[token]
        energies = [
            d.score.weight[0] @ (d.keys.weight @ region + d.keys.bias + d.query.weight @ h).tanh() for region in regions
        ]
        total = sum(energy.exp() for energy in energies)
        alphas = [energy.exp() / total for energy in energies]
        z = torch.zeros(D, dtype=regions.dtype)
        for alpha, region in zip(alphas, regions, strict=True):
            z = z + alpha * region
        if d.beta is not None:
            z = (d.beta.weight @ h + d.beta.bias).sigmoid() * z
        cell = nn.LSTMCell(5 + D, d.hidden_dim, dtype=regions.dtype)  # a second implementation of the LSTM itself
        state = {
            "weight_ih": torch.cat([d.from_words.weight, d.from_seen.weight], dim=1),
            "weight_hh": d.from_hidden.weight,
            "bias_ih": d.from_words.bias,
            "bias_hh": torch.zeros(4 * d.hidden_dim),
        }
        cell.load_state_dict(state)
        h, c = (t[0] for t in cell(torch.cat([y, z])[None], (h[None], c[None])))
        out = h
        if d.deep_hidden is not None and d.deep_seen is not None:
            out = y + d.deep_hidden.weight @ h + d.deep_hidden.bias + d.deep_seen.weight @ z
        if isinstance(d.words.bridge, nn.Linear):
            out = d.words.bridge.weight @ out + d.words.bridge.bias
        matrix = d.words.embedding.weight if d.words.output is None else d.words.output.weight
        logits.append(matrix @ out + d.words.bias)
        maps.append(torch.stack(alphas))
    return torch.stack(logits), torch.stack(maps)


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_and_maps_are_those_of_the_equations(options: dict[str, Any], per_image: int) -> None:
    decoder: AttentionLSTMDecoder = shaken(make(**options))
    features, tokens = masked_features(), words(3 * per_image, 4)
    with torch.no_grad():
        memory = decoder.prepare(features)
        forced = decoder(tokens, memory, attention=True)
        steps = unroll(decoder, tokens, memory)
        for row in range(len(tokens)):
            photo = row // per_image
            logits, maps = show_attend_and_tell(decoder, real_regions(features, photo), tokens[row].tolist())
            torch.testing.assert_close(forced.logits[row], logits, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(steps[row], logits, rtol=1e-10, atol=1e-10)
            assert forced.attention is not None
            assert features.mask is not None
            torch.testing.assert_close(forced.attention[row][:, features.mask[photo]], maps, rtol=1e-10, atol=1e-10)
            assert not forced.attention[row][:, ~features.mask[photo]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_laws_hold(options: dict[str, Any], dtype: torch.dtype) -> None:
    check_decoder(make(**options, dropout=0.5).to(dtype))


def test_gate_and_output_have_the_sizes_of_the_paper() -> None:
    shapes = {gate: None if (beta := make(gate=gate).beta) is None else beta.out_features for gate in GATES}
    assert shapes == {"scalar": 1, "vector": D, "none": None}
    assert make(tied=True).words.output is None
    assert isinstance(make(deep_output=True, tied=True).words.bridge, nn.Identity)
    assert isinstance(make(deep_output=False, tied=True).words.bridge, nn.Linear)


def test_the_forget_gate_starts_open() -> None:
    assert make().from_words.bias.view(4, 7).sum(1).tolist() == [0, 7, 0, 0]


def test_words_go_in_and_out_as_one_batch_in_teacher_forcing() -> None:
    decoder = make()
    calls: dict[str, list[tuple[int, ...]]] = {"from_words": [], "deep_seen": [], "from_seen": [], "keys": []}
    for name, shapes in calls.items():
        getattr(decoder, name).register_forward_hook(lambda m, args, out, s=shapes: s.append(tuple(args[0].shape)))
    decoder(words(6, 4), decoder.prepare(masked_features(torch.float32)))
    assert calls == {
        "keys": [(3, 5, D)],
        "from_words": [(6, 4, 5)],
        "from_seen": [(6, D)] * 4,
        "deep_seen": [(6, 4, D)],
    }
