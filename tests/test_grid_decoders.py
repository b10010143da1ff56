"""What holds for every decoder that looks at a grid."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from grids import D, masked_features, shaken, words
from showtell.assembly import shapes_only
from showtell.captioner import Captioner
from showtell.decoders import AdaptiveLSTMDecoder, AttentionLSTMDecoder, TransformerDecoder, unroll
from showtell.errors import ArgumentError, FormatError
from showtell.generate import generate
from showtell.protocols import Features
from showtell.registry import component_name, find_component
from showtell.rows import repeat_rows
from showtell.search import Beam, Greedy
from showtell.testing import TinyEncoder
from showtell.training import with_vocabulary
from showtell.vocabulary import Vocabulary

SMALL: dict[str, dict[str, Any]] = {
    "attention-lstm.v1": {"embed_dim": 5, "hidden_dim": 7, "attention_dim": 4},
    "adaptive-lstm.v1": {"embed_dim": 5, "hidden_dim": 7, "attention_dim": 4},
    "transformer.v1": {"hidden_dim": 8, "layers": 2, "heads": 2, "feedforward_dim": 10, "max_positions": 24},
}
NAMES = list(SMALL)


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    kind: Any = find_component("decoder", name)
    return kind(**{"vocab_size": 11, "feature_dim": D, "dropout": 0.0, **SMALL[name], **options})


def test_the_names_are_those_of_the_classes() -> None:
    kinds = [AttentionLSTMDecoder, AdaptiveLSTMDecoder, TransformerDecoder]
    assert [find_component("decoder", name) for name in NAMES] == kinds
    assert [component_name("decoder", kind) for kind in kinds] == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [True, False])
def test_maps_sum_to_one_or_less_and_are_zero_where_masked(name: str, masked: bool) -> None:
    decoder = shaken(make(name))
    features = masked_features()
    if not masked:
        features = Features(features.pooled, torch.randn(3, 5, D, dtype=torch.float64))
    with torch.no_grad():
        maps = decoder(words(6, 4), decoder.prepare(features), attention=True).attention
    assert maps.shape == (6, 4, 5)
    assert bool((maps >= 0).all())
    if name == "adaptive-lstm.v1":
        assert bool((maps.sum(2) < 1).all())
    else:
        torch.testing.assert_close(maps.sum(2), torch.ones(6, 4, dtype=torch.float64))
    if masked:
        assert features.mask is not None
        hidden = ~features.mask.repeat_interleave(2, dim=0)
        assert not maps.transpose(1, 2)[hidden].any()
        assert bool((maps.transpose(1, 2)[~hidden] > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_returned_only_where_asked_and_changes_no_logit(name: str) -> None:
    decoder = make(name).eval()
    memory = decoder.prepare(masked_features(torch.float32))
    plain, asked = decoder(words(6, 4), memory), decoder(words(6, 4), memory, attention=True)
    assert plain.attention is None
    assert torch.equal(plain.logits, asked.logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient_from_the_words_and_no_masked_region_one(name: str, tied: bool) -> None:
    decoder = shaken(make(name, tied=tied, **({"positions": "learned"} if name == "transformer.v1" else {})))
    features = masked_features()
    assert features.grid is not None
    grid = features.grid.clone().requires_grad_()
    decoder(words(6, 4), decoder.prepare(features._replace(grid=grid))).logits.square().sum().backward()
    without = [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters())
    assert grid.grad is not None
    assert features.mask is not None
    assert not grid.grad[~features.mask].any()
    assert bool((grid.grad[features.mask].abs().sum(1) > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_also_flow_from_the_maps(name: str) -> None:
    decoder = shaken(make(name))
    maps = decoder(words(6, 4), decoder.prepare(masked_features()), attention=True).attention
    maps.square().sum().backward()
    grads = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    key = "layers.1.cross_q.weight" if name == "transformer.v1" else "query.weight"
    assert grads[key].abs().sum() > 0
    assert all(bool(g.isfinite().all()) for g in grads.values())


class Largest(TorchFunctionMode):
    """The most elements that any result had."""

    elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_an_image_share_its_memory_without_a_copy(name: str) -> None:
    # Keys and values of 16 numbers a region, one for each row: that is what must not be made. Weights of the regions
    # are one number a row and head; with attention_dim=1 so is what the additive attention compares.
    images, per_image, regions, steps = 2, 10, 400, 2
    decoder = make(name, hidden_dim=16, **({} if name == "transformer.v1" else {"attention_dim": 1}))
    features = Features(torch.randn(images, D), torch.randn(images, regions, D))
    tokens = words(images * per_image, steps)
    heads = getattr(decoder, "heads", 1)
    with torch.no_grad():
        memory = decoder.prepare(features)
        state = repeat_rows(decoder.initial_state(memory, steps), per_image)
        limit = images * regions * max(per_image * steps * heads + 1, 2 * 2 * 16)  # maps of all steps; memory
        with Largest() as seen:
            decoder.step(tokens[:, 0], state, memory)
            decoder(tokens, memory, attention=True)
    assert limit < images * per_image * regions * 16 / 2
    assert seen.elements <= limit * 1.01


@pytest.mark.parametrize("name", NAMES)
def test_the_config_survives_json_and_builds_the_same_tensors_without_memory(name: str) -> None:
    decoder = make(name, dropout=0.25)
    config = json.loads(json.dumps(decoder.config()))
    assert config == decoder.config()
    shapes = {k: v.shape for k, v in decoder.state_dict().items()}
    with shapes_only():
        built = type(decoder)(**config)
    assert {k: v.shape for k, v in built.state_dict().items()} == shapes
    assert all(t.is_meta for t in (*built.parameters(), *built.buffers()))
    pointers = [t.data_ptr() for t in decoder.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


LSTM_LIKE = ["attention-lstm.v1", "adaptive-lstm.v1"]
BAD: list[tuple[str, dict[str, Any]]] = [
    *((name, {key: value}) for name in NAMES for key, value in (
        ("vocab_size", 3), ("vocab_size", 2_000_001), ("vocab_size", "11"), ("feature_dim", 0), ("feature_dim", 65537),
        ("hidden_dim", 0), ("hidden_dim", 65537), ("hidden_dim", True), ("dropout", 1.0), ("dropout", -0.1),
        ("dropout", float("nan")), ("tied", 1),
    )),
    *((name, {key: value}) for name in LSTM_LIKE for key in ("embed_dim", "attention_dim") for value in (0, 65537)),
    *(("attention-lstm.v1", {key: value}) for key, value in (
        ("gate", "matrix"), ("gate", None), ("gate", ["scalar"]), ("deep_output", 1),
    )),
    *(("transformer.v1", {key: value}) for key, value in (
        ("layers", 0), ("layers", 65), ("heads", 0), ("heads", 257), ("feedforward_dim", 0),
        ("feedforward_dim", 262_145), ("positions", "rotary"), ("max_positions", 0), ("max_positions", 4097),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), BAD, ids=str)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        make(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_features_without_a_grid_or_of_another_shape_are_refused(name: str) -> None:
    decoder = make(name)
    pooled, grid = torch.randn(2, D), torch.randn(2, 5, D)
    with pytest.raises(ArgumentError, match=rf"^{name} looks at a grid.*grid=True.*lstm\.v1"):
        decoder.prepare(Features(pooled))
    for wrong in (grid[:, :, 1:], grid[0], grid[:, :0], grid.long()):
        with pytest.raises(ArgumentError, match=rf"{name} takes a grid \(photos, regions, 6\)"):
            decoder.prepare(Features(pooled, wrong))
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5), torch.ones(5, dtype=torch.bool)):
        with pytest.raises(ArgumentError, match=r"mask of a grid.*bool \(2, 5\)"):
            decoder.prepare(Features(pooled, grid, mask))
    with pytest.raises(ArgumentError, match="hides every region of photo 1"):
        decoder.prepare(Features(pooled, grid, torch.tensor([[True] * 5, [False] * 5])))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_states_of_the_wrong_shape_or_type_are_refused(name: str) -> None:
    decoder = make(name)
    memory = decoder.prepare(masked_features(torch.float32))
    state = decoder.initial_state(memory, 5)
    ids = torch.ones(3, dtype=torch.int64)
    first = next(iter(state))
    for tokens, before in (
        (ids.unsqueeze(1), state),
        (ids.int(), state),
        (ids.float(), state),
        (torch.ones(6, dtype=torch.int64), state),
        (ids, {}),
        (ids, {first: state[first]}),
        (ids, {**state, first: state[first][:, :1]}),
        (ids, {**state, first: state[first][0]}),
    ):
        with pytest.raises(ArgumentError):
            decoder.step(tokens, before, memory)
    for tokens in (ids, ids.view(3, 1)[:, :0], ids.view(3, 1).float(), torch.ones(4, 2, dtype=torch.int64)):
        with pytest.raises(ArgumentError):
            decoder(tokens, memory)
    with pytest.raises(ArgumentError, match="shared out evenly"):
        decoder(torch.ones(4, 2, dtype=torch.int64), memory)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_are_cast_to_the_weights_type(name: str, dtype: torch.dtype) -> None:
    decoder = make(name).to(dtype)
    features = Features(torch.randn(2, D).half(), torch.randn(2, 5, D).half(), torch.ones(2, 5, dtype=torch.bool))
    memory = decoder.prepare(features)
    forced = decoder(words(4, 3), memory, attention=True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # words are told apart in float32 at least
    assert forced.attention.dtype == dtype
    assert forced.logits.dtype == unroll(decoder, words(4, 3), memory).dtype == wide
    assert generate(decoder, features, Beam(size=2, max_length=4)).log_probs.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_training_in_bfloat16_autocast_stays_near_float32(name: str) -> None:
    decoder = make(name)
    tokens, features = words(6, 4), masked_features(torch.float32)
    plain = decoder(tokens, decoder.prepare(features)).logits
    with torch.autocast("cpu", torch.bfloat16):
        forced = decoder(tokens, decoder.prepare(features), attention=True)
        stepped = unroll(decoder, tokens, decoder.prepare(features))
    forced.logits.float().square().sum().backward()
    assert (forced.logits.float() - plain).abs().max() < 0.03 * plain.abs().max()
    assert (stepped.float() - plain).abs().max() < 0.03 * plain.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_works_in_training_and_not_in_eval(name: str) -> None:
    decoder = make(name, dropout=0.5)
    features = masked_features(torch.float32)

    def run() -> Tensor:
        logits: Tensor = decoder(words(6, 4), decoder.prepare(features)).logits
        return logits

    assert not torch.equal(run(), run())
    decoder.eval()
    assert torch.equal(run(), run())


@pytest.mark.parametrize("name", NAMES)
def test_a_captioner_is_saved_and_loaded_and_says_the_same(name: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["a dog runs on the grass", "a cat sits"], min_count=1)
    decoder = make(name, vocab_size=len(vocabulary), feature_dim=8)
    captioner = Captioner(TinyEncoder(8), decoder, vocabulary, search="beam:3").eval()
    captioner.save_pretrained(tmp_path)
    again = Captioner.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["decoder"]["name"] == name
    assert type(again.decoder) is type(decoder)
    photos = list(torch.rand(4, 3, 32, 32))
    assert again.caption(photos) == captioner.caption(photos)
    first = (tmp_path / "model.safetensors").read_bytes()
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_lies_about_its_sizes_is_refused_at_once(name: str, tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["a dog"], min_count=1)
    decoder = make(name, vocab_size=len(vocabulary), feature_dim=8)
    Captioner(TinyEncoder(8), decoder, vocabulary).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    huge: dict[str, Any] = {"hidden_dim": 65536, "feature_dim": 8}
    if name == "transformer.v1":
        huge |= {"feedforward_dim": 262_144, "layers": 64, "max_positions": 4096, "heads": 256}
    else:
        huge |= {"embed_dim": 65536, "attention_dim": 65536}
    started = time.perf_counter()
    for change, message in (
        (huge, "don't fit"),
        ({"hidden_dim": 10**9}, "hidden_dim must be a whole number"),
        ({"hidden_dim": "8"}, "hidden_dim must be a whole number"),
        ({"surprise": 1}, "surprise"),
    ):
        config = {**saved, "decoder": {**saved["decoder"], "config": {**saved["decoder"]["config"], **change}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(FormatError, match=message):
            Captioner.from_pretrained(tmp_path)
    assert time.perf_counter() - started < 20  # building 10^10 weights takes minutes, and more memory than there is


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_vocabulary_keeps_what_was_learned(name: str, tied: bool) -> None:
    old = Vocabulary.build(["a dog runs"], min_count=1)
    new = old.grown(["a zebra"], min_count=1)
    decoder = shaken(make(name, vocab_size=len(old), tied=tied)).float()
    grown: Any = with_vocabulary(decoder, old, new)
    features, tokens = masked_features(torch.float32), words(3, 4, len(old))
    places = [new.words.index(word) for word in old.words]
    with torch.no_grad():
        before = decoder(tokens, decoder.prepare(features)).logits
        after = grown(torch.tensor(places)[tokens], grown.prepare(features)).logits
    torch.testing.assert_close(after[:, :, places], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("search", [Greedy(max_length=6), Beam(size=3, max_length=6)], ids=["greedy", "beam"])
def test_photos_captioned_together_say_what_each_says_alone(name: str, search: Any) -> None:
    decoder, features = shaken(make(name)), masked_features()
    together = generate(decoder, features, search)
    for photo in range(3):
        one = Features(*(None if t is None else t[photo : photo + 1] for t in features))  # type: ignore[arg-type]
        alone = generate(decoder, one, search)
        assert torch.equal(alone.tokens[0], together.tokens[photo])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[photo])


@pytest.mark.parametrize("name", NAMES)
def test_off_the_cpu_nobody_waits_for_a_value(name: str) -> None:
    # Tensors on the meta device have no values to wait for: reading one raises.
    decoder = make(name).to("meta")
    features = Features(*(None if t is None else t.to("meta") for t in masked_features(torch.float32)))  # type: ignore[arg-type]
    tokens = words(6, 4).to("meta")
    with torch.inference_mode():
        memory = decoder.prepare(features)
        state = repeat_rows(decoder.initial_state(memory, 4), 2)
        for word in tokens.unbind(1):
            before = {key: t.shape for key, t in state.items()}
            logits, state = decoder.step(word, state, memory)
            assert {key: t.shape for key, t in state.items()} == before
        forced = decoder(tokens, memory, attention=True)
    assert logits.shape == (6, 11)
    assert (forced.logits.shape, forced.attention.shape) == ((6, 4, 11), (6, 4, 5))
