from __future__ import annotations

import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from grids import D, masked_features, real_regions, shaken, words
from showtell.decoders import TransformerDecoder, unroll
from showtell.errors import ArgumentError
from showtell.generate import generate
from showtell.rows import repeat_rows, select_rows
from showtell.search import Beam
from showtell.testing import check_decoder

VARIANTS = [
    {"positions": positions, "tied": tied, "layers": layers, "heads": heads}
    for positions, (tied, layers, heads) in itertools.product(
        ["sinusoidal", "learned"], [(True, 1, 1), (True, 2, 2), (False, 3, 4)]
    )
]


def make(**options: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "feature_dim": D, "hidden_dim": 8, "layers": 2, "heads": 2, "feedforward_dim": 10}
    return TransformerDecoder(**{**sizes, "dropout": 0.0, "max_positions": 9, **options})


def plain_norm(norm: Any, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return norm.weight * centred / ((centred**2).mean() + norm.eps).sqrt() + norm.bias


def plain_attention(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """One question of `heads` heads -> its answer, and the mean of the heads' weights."""
    width, answer, weights = len(query) // heads, [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        energies = torch.stack([query[part] @ key[part] / math.sqrt(width) for key in keys])
        share = energies.exp() / energies.exp().sum()
        answer.append(sum((s * value[part] for s, value in zip(share, values, strict=True)), torch.zeros(width)))
        weights.append(share)
    return torch.cat(answer), torch.stack(weights).mean(0)


def plain_decoder(d: TransformerDecoder, regions: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """The equations for one photo and one caption, word by word -> logits (T, V), maps (T, L)."""
    size = d.hidden_dim
    seen = [plain_norm(d.regions_norm, d.regions.weight @ region + d.regions.bias) for region in regions]
    stack: list[Any] = list(d.layers)
    kept: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in stack]
    logits, maps = [], []
    for t, token in enumerate(tokens):
        x = d.words.embedding.weight[token] * math.sqrt(size) + d.position[t]
        for layer, (keys, values) in zip(stack, kept, strict=True):
            q, k, v = (layer.self_qkv.weight @ plain_norm(layer.self_norm, x) + layer.self_qkv.bias).split(size)
            keys.append(k)
            values.append(v)
            answer, _ = plain_attention(q, keys, values, d.heads)
            x = x + layer.self_out.weight @ answer + layer.self_out.bias
            q = layer.cross_q.weight @ plain_norm(layer.cross_norm, x) + layer.cross_q.bias
            both = [(layer.cross_kv.weight @ region + layer.cross_kv.bias).split(size) for region in seen]
            answer, weights = plain_attention(q, [b[0] for b in both], [b[1] for b in both], d.heads)
            x = x + layer.cross_out.weight @ answer + layer.cross_out.bias
            wide = layer.wide.weight @ plain_norm(layer.wide_norm, x) + layer.wide.bias
            wide = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2  # GELU
            x = x + layer.narrow.weight @ wide + layer.narrow.bias
        matrix = d.words.embedding.weight if d.words.output is None else d.words.output.weight
        logits.append(matrix @ plain_norm(d.norm, x) + d.words.bias)
        maps.append(weights)
    return torch.stack(logits), torch.stack(maps)


@pytest.mark.parametrize("per_image", [1, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_and_maps_are_those_of_the_equations(options: dict[str, Any], per_image: int) -> None:
    decoder: TransformerDecoder = shaken(make(**options))
    features, tokens = masked_features(), words(3 * per_image, 4)
    with torch.no_grad():
        memory = decoder.prepare(features)
        forced = decoder(tokens, memory, attention=True)
        steps = unroll(decoder, tokens, memory)
        assert forced.attention is not None
        assert features.mask is not None
        for row in range(len(tokens)):
            photo = row // per_image
            logits, maps = plain_decoder(decoder, real_regions(features, photo), tokens[row].tolist())
            torch.testing.assert_close(forced.logits[row], logits, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(steps[row], logits, rtol=1e-10, atol=1e-10)
            found = forced.attention[row]
            torch.testing.assert_close(found[:, features.mask[photo]], maps, rtol=1e-10, atol=1e-10)
            assert not found[:, ~features.mask[photo]].any()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_logits_are_those_of_torchs_own_layers(options: dict[str, Any]) -> None:
    decoder: TransformerDecoder = shaken(make(**options))
    size, tokens, features = decoder.hidden_dim, words(3, 5), masked_features()
    assert features.mask is not None
    layer = nn.TransformerDecoderLayer(
        size, decoder.heads, decoder.feedforward_dim, 0.0, "gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerDecoder(layer, len(decoder.layers), norm=nn.LayerNorm(size)).double().eval()
    state = {f"norm.{name}": value for name, value in decoder.norm.state_dict().items()}
    for i, ours in enumerate(decoder.layers):
        own = ours.state_dict()
        for kind in ("weight", "bias"):
            both = torch.cat([own[f"cross_q.{kind}"], own[f"cross_kv.{kind}"]])
            state |= {
                f"layers.{i}.self_attn.in_proj_{kind}": own[f"self_qkv.{kind}"],
                f"layers.{i}.self_attn.out_proj.{kind}": own[f"self_out.{kind}"],
                f"layers.{i}.multihead_attn.in_proj_{kind}": both,
                f"layers.{i}.multihead_attn.out_proj.{kind}": own[f"cross_out.{kind}"],
                f"layers.{i}.linear1.{kind}": own[f"wide.{kind}"],
                f"layers.{i}.linear2.{kind}": own[f"narrow.{kind}"],
                f"layers.{i}.norm1.{kind}": own[f"self_norm.{kind}"],
                f"layers.{i}.norm2.{kind}": own[f"cross_norm.{kind}"],
                f"layers.{i}.norm3.{kind}": own[f"wide_norm.{kind}"],
            }
    theirs.load_state_dict(state)
    with torch.no_grad():
        grid = torch.zeros(3, 5, D, dtype=torch.float64)
        for photo in range(3):
            grid[photo, features.mask[photo]] = real_regions(features, photo)
        regions = decoder.regions_norm(decoder.regions(grid))
        x = decoder.words(tokens) * math.sqrt(size) + decoder.position[:5]
        causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
        hidden = theirs(x, regions, tgt_mask=causal, memory_key_padding_mask=~features.mask)
        expected = decoder.words.logits(hidden)
        found = decoder(tokens, decoder.prepare(features)).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_laws_hold(options: dict[str, Any], dtype: torch.dtype) -> None:
    check_decoder(make(**options, dropout=0.3).to(dtype))


def test_positions_are_sines_and_cosines_in_turns() -> None:
    table = make(hidden_dim=6, max_positions=4).position
    for t, i in itertools.product(range(4), range(6)):
        angle = t / 10000 ** ((i - i % 2) / 6)
        assert table[t, i].item() == pytest.approx(math.cos(angle) if i % 2 else math.sin(angle), abs=1e-6)
    assert make(hidden_dim=3, heads=1, positions="learned").position.shape == (9, 3)
    assert "position" in make(positions="learned").state_dict()
    assert "position" not in make().state_dict()


def test_the_map_of_a_region_that_alone_is_real_is_one() -> None:
    decoder = make().eval()
    features = masked_features(torch.float32)
    assert features.mask is not None
    features = features._replace(mask=torch.arange(5) == torch.tensor([[1], [1], [4]]))
    maps = decoder(words(3, 2), decoder.prepare(features), attention=True).attention
    assert maps is not None
    assert maps.argmax(2).tolist() == [[1, 1], [1, 1], [4, 4]]
    assert torch.equal(maps.sum(2), torch.ones(3, 2))


@pytest.mark.parametrize("compiled", [False, True], ids=["as on a CPU", "as on an accelerator"])
def test_rows_may_be_at_different_places(compiled: bool) -> None:
    decoder: TransformerDecoder = shaken(make())
    tokens = words(6, 5)
    with torch.no_grad(), mock.patch.object(torch.compiler, "is_compiling", return_value=compiled):
        memory = decoder.prepare(masked_features())
        expected = decoder(tokens, memory).logits
        state = repeat_rows(decoder.initial_state(memory, 5), 2)
        places = [0] * 6
        for moving in ([0, 2, 3], [0, 1], [1, 2, 3, 4, 5], [0, 3]):
            before = {name: t.clone() for name, t in state.items()}
            logits, after = decoder.step(tokens[range(6), places], state, memory)
            for row in moving:
                torch.testing.assert_close(logits[row], expected[row, places[row]], rtol=1e-9, atol=1e-9)
                places[row] += 1
            stay = torch.tensor([row not in moving for row in range(6)])
            state = {
                name: torch.where(stay.view(-1, *[1] * (t.ndim - 1)), before[name], t) for name, t in after.items()
            }
        assert state["t"].tolist() == places


def test_the_shapes_never_change_and_unused_room_has_no_influence() -> None:
    decoder: TransformerDecoder = shaken(make())
    tokens = words(3, 4)
    with torch.no_grad():
        memory = decoder.prepare(masked_features())
        results = []
        for room in (4, 9):
            state = decoder.initial_state(memory, room)
            shapes = {name: t.shape for name, t in state.items()}
            for word in tokens.unbind(1):
                state["kv"][:, :, :, :, int(state["t"][0]) :] = 1e3
                logits, state = decoder.step(word, state, memory)
                assert {name: t.shape for name, t in state.items()} == shapes
            results.append(logits)
    assert torch.equal(*results)
    assert shapes["kv"] == (3, 2, 2, 2, 9, 4)


def test_the_state_is_written_to_unless_gradients_are_recorded() -> None:
    decoder = make()
    memory = decoder.prepare(masked_features(torch.float32))
    state = decoder.initial_state(memory, 3)
    tokens = words(3, 3)
    _, after = decoder.step(tokens[:, 0], state, memory)
    assert not state["kv"].any()
    assert after["kv"].data_ptr() != state["kv"].data_ptr()
    with torch.no_grad():
        _, after = decoder.step(tokens[:, 0], state, memory)
    assert after["kv"].data_ptr() == state["kv"].data_ptr()
    assert state["t"].tolist() == [0] * 3


def test_gradients_of_the_steps_are_those_of_teacher_forcing() -> None:
    decoder: TransformerDecoder = shaken(make(positions="learned"))
    tokens, features = words(6, 4), masked_features()
    parameters = list(decoder.parameters())
    found = [
        torch.autograd.grad(run(decoder.prepare(features)).square().sum(), parameters)
        for run in (lambda m: decoder(tokens, m).logits, lambda m: unroll(decoder, tokens, m))
    ]
    for forced, stepped in zip(*found, strict=True):
        torch.testing.assert_close(forced, stepped, rtol=1e-8, atol=1e-8)


def test_beams_that_change_places_take_their_past_along() -> None:
    decoder: TransformerDecoder = shaken(make())
    found = generate(decoder, masked_features(), Beam(size=3, max_length=6), forbid=(0, 1))
    with torch.no_grad():
        memory = decoder.prepare(masked_features())
        for photo, hypothesis in itertools.product(range(3), range(3)):
            length = int(found.lengths[photo, hypothesis])
            tokens = found.tokens[photo, hypothesis, :length]
            given = torch.cat([torch.tensor([1]), tokens[:-1]])[None]
            mine = {name: t[photo : photo + 1] for name, t in memory.items()}
            log_probs = decoder(given, mine).logits[0].log_softmax(1)
            total = log_probs[range(length), tokens].sum()
            assert found.log_probs[photo, hypothesis].item() == pytest.approx(total.item(), abs=1e-9)


def test_more_tokens_than_there_are_positions_or_room_are_refused() -> None:
    decoder = make()
    memory = decoder.prepare(masked_features(torch.float32))
    with pytest.raises(ArgumentError, match=r"1\.\.9 tokens, not 10"):
        decoder.initial_state(memory, 10)
    with pytest.raises(ArgumentError, match=r"1\.\.9 tokens, not 0"):
        decoder.initial_state(memory, 0)
    with pytest.raises(ArgumentError, match=r"1\.\.9 tokens, not 10"):
        decoder(words(3, 10), memory)
    with torch.no_grad():
        state = decoder.initial_state(memory, 2)
        for word in words(3, 2).unbind(1):
            _, state = decoder.step(word, state, memory)
        with pytest.raises(ArgumentError, match="room for 2 tokens and is full"):
            decoder.step(words(3, 1)[:, 0], state, memory)
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
            assert decoder.step(words(3, 1)[:, 0], state, memory)[0].isnan().all()
        full = select_rows(state, torch.tensor([0]))
        with pytest.raises(ArgumentError, match="shared out evenly"):
            decoder.step(words(1, 1)[:, 0], full, memory)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ArgumentError, match="multiple of heads; 8 isn't one of 3"):
        make(heads=3)
