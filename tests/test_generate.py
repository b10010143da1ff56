from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell.decoders import LSTMDecoder
from showtell.errors import ArgumentError, RunError
from showtell.generate import generate
from showtell.protocols import Features
from showtell.rows import Rows
from showtell.search import Beam, DiverseBeam, Greedy, Sample, Search
from showtell.testing import tiny_captioner

SEARCHES = [
    Greedy(8),
    Beam(3, 8),
    Beam(4, 8, 0.8, "gnmt"),
    DiverseBeam(4, 2, 0.5, 8),
    Sample(3, 1.2, top_p=0.95, seed=3, max_length=8),
]


def make_decoder(seed: int = 0) -> LSTMDecoder:
    torch.manual_seed(seed)
    decoder = LSTMDecoder(30, 6, embed_dim=8, hidden_dim=8, dropout=0.5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4)  # fresh weights say the same for every photo
    return decoder


@pytest.mark.parametrize("search", SEARCHES)
def test_log_probs_are_those_of_teacher_forcing(search: Search) -> None:
    decoder = make_decoder().eval()
    features = Features(torch.randn(5, 6))
    found = generate(decoder, features, search)
    images, k, steps = found.tokens.shape
    tokens = found.tokens.view(-1, steps)
    inputs = torch.cat([torch.full((images * k, 1), 1), tokens[:, :-1]], dim=1)
    logits = decoder(inputs, decoder.prepare(features)).logits
    forced = logits.log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2).view(images, k, steps)
    real = torch.arange(steps) < found.lengths.unsqueeze(2)
    assert torch.allclose(found.token_log_probs, forced.where(real, 0.0), atol=1e-5)
    assert torch.allclose(found.log_probs, found.token_log_probs.sum(2), atol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_batch_gives_what_its_photos_give_one_by_one(search: Search) -> None:
    decoder = make_decoder()
    pooled = torch.randn(6, 6)
    found = generate(decoder, Features(pooled), search)
    assert len(set(map(str, found.tokens[:, 0].tolist()))) > 1
    for i in range(6):
        alone = generate(decoder, Features(pooled[i : i + 1]), search, positions=[i])
        assert torch.equal(alone.tokens[0], found.tokens[i])
        assert torch.allclose(alone.scores[0], found.scores[i], atol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
def test_forbidden_words_never_appear(search: Search) -> None:
    found = generate(make_decoder(), Features(torch.randn(20, 6)), search)
    free = generate(make_decoder(), Features(torch.randn(200, 6)), search, forbid=())
    assert not torch.isin(found.tokens, torch.tensor([0, 1, 3])).any()
    assert torch.isin(free.tokens, torch.tensor([0, 1, 3])).any()
    tops = found.tokens[:, 0, 0].unique().tolist()
    less = generate(make_decoder(), Features(torch.randn(20, 6)), search, forbid=[0, 1, 3, *tops])
    assert not torch.isin(less.tokens, torch.tensor([0, 1, 3, *(t for t in tops if t != 2)])).any()


@pytest.mark.parametrize("search", SEARCHES)
def test_without_the_end_token_every_caption_has_full_length(search: Search) -> None:
    found = generate(make_decoder(), Features(torch.randn(4, 6)), search, forbid=[0, 1, 2, 3])
    assert (found.lengths == 8).all()


def test_the_decoder_gets_back_the_mode_of_each_of_its_parts() -> None:
    decoder = make_decoder().train()
    decoder.lstm.eval()
    before = {name: module.training for name, module in decoder.named_modules()}
    first = generate(decoder, Features(torch.ones(2, 6)), Beam(2, 8))
    second = generate(decoder, Features(torch.ones(2, 6)), Beam(2, 8))
    assert torch.equal(first.scores, second.scores), "dropout was on"
    assert {name: module.training for name, module in decoder.named_modules()} == before
    with pytest.raises(ArgumentError):
        generate(decoder, Features(torch.ones(2, 7)))
    assert {name: module.training for name, module in decoder.named_modules()} == before
    assert not first.scores.requires_grad


def test_no_photos_give_no_captions() -> None:
    for search in SEARCHES:
        assert generate(make_decoder(), Features(torch.zeros(0, 6)), search).tokens.shape[::2] == (0, 8)


def test_nan_features_end_in_a_clear_error() -> None:
    pooled = torch.randn(3, 6)
    pooled[2, 1] = torch.nan
    for search in SEARCHES:
        with pytest.raises(RunError, match=r"image 2.*NaN"):
            generate(make_decoder(), Features(pooled), search)


def test_everything_forbidden_ends_in_a_clear_error() -> None:
    for search in SEARCHES:
        with pytest.raises(RunError, match="image 0: every next word was forbidden"):
            generate(make_decoder(), Features(torch.randn(3, 6)), search, forbid=range(30))


@pytest.mark.parametrize("options", [{"start": 30}, {"end": -1}, {"forbid": [30]}, {"forbid": [True]}, {"end": 2.0}])
def test_ids_outside_the_vocabulary_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=r"whole number in 0\.\.29"):
        generate(make_decoder(), Features(torch.randn(1, 6)), **options)  # type: ignore[arg-type]


def test_a_tensor_in_place_of_features_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Features"):
        generate(make_decoder(), torch.randn(1, 6))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_log_probs_are_at_least_float32(dtype: torch.dtype) -> None:
    found = generate(make_decoder().to(dtype), Features(torch.randn(2, 6)), Beam(2, 5))
    assert found.log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


class Parrot:
    """A decoder that is no module and keeps its memory in N rows: it says the photo's number, then ends."""

    vocab_size, has_attention = 12, False

    def prepare(self, features: Features) -> Rows:
        return {"word": features.pooled[:, 0].long()}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"t": torch.zeros(memory["word"].shape[0], dtype=torch.int64), "room": torch.full((2,), max_length)}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        assert memory["word"].shape == (2,)
        word = memory["word"].repeat_interleave(tokens.shape[0] // 2)
        word = torch.where(state["t"] == 0, word, 2)
        logits = 9.0 * nn.functional.one_hot(word, self.vocab_size).float()
        return logits, {"t": state["t"] + 1, "room": state["room"]}

    def __call__(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> object:
        raise NotImplementedError

    def config(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("search", SEARCHES)
def test_any_decoder_with_the_protocol_will_do(search: Search) -> None:
    found = generate(Parrot(), Features(torch.tensor([[7.0], [9.0]])), search)  # type: ignore[arg-type]
    assert found.tokens[:, 0, :2].tolist() == [[7, 2], [9, 2]]
    assert found.lengths[:, 0].tolist() == [2, 2]


def test_forced_words_appear_and_log_probs_stay_the_models_own() -> None:
    decoder = make_decoder().eval()
    features = Features(torch.randn(4, 6))
    force = [[[10], [11, 12]], [], [[13], [14], [15]], [[16]]]
    found = generate(decoder, features, Beam(2, 8), force=force)
    for demands, captions in zip(force, found.tokens.tolist(), strict=True):
        assert all(set(caption) & set(demand) for caption in captions for demand in demands)
    inputs = torch.cat([torch.ones_like(found.tokens[..., :1]), found.tokens[..., :-1]], 2).flatten(0, 1)
    logits = decoder(inputs, decoder.prepare(features)).logits
    forced = logits.log_softmax(-1).gather(2, found.tokens.flatten(0, 1).unsqueeze(2)).view(found.tokens.shape)
    real = torch.arange(8) < found.lengths.unsqueeze(2)
    assert torch.allclose(found.token_log_probs, forced.where(real, 0.0), atol=1e-5)
    plain = generate(decoder, features, Beam(2, 8))
    assert torch.equal(found.tokens[1], plain.tokens[1])


@pytest.mark.parametrize(
    ("search", "force", "message"),
    [
        (Greedy(8), [[[10]]], "forced words need Beam"),
        (DiverseBeam(max_length=8), [[[10]]], "forced words need Beam"),
        (Sample(max_length=8), [[[10]]], "forced words need Beam"),
        (Beam(2, 8), [[[30]]], r"whole number in 0\.\.29"),
        (Beam(2, 8), [[[0, 3]]], "image 0.*all are forbidden"),
        (Beam(2, 8), [[[2]]], "image 0: the end token 2"),
        (Beam(2, 8), [], "for each of 1 images"),
        (Beam(2, 1), [[[10], [11]]], "2 words at least"),
    ],
)
def test_demands_that_no_caption_can_satisfy_are_refused(search: Search, force: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        generate(make_decoder(), Features(torch.randn(1, 6)), search, force=force)  # type: ignore[arg-type]


def test_no_demands_ask_nothing_of_a_search() -> None:
    for search in SEARCHES:
        assert generate(make_decoder(), Features(torch.randn(2, 6)), search, force=[[], []]).tokens.shape[0] == 2


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda prefix, log_probs: None, "returned None"),
        (lambda prefix, log_probs: log_probs[:, :3], r"returned \(1, 3\)"),
        (lambda prefix, log_probs: log_probs.tolist(), "a mask returns the log-probabilities that it was given"),
    ],
)
def test_a_mask_that_forgets_to_return_the_log_probabilities_is_told(mask: Any, message: str) -> None:
    captioner = tiny_captioner()
    with pytest.raises(ArgumentError, match=message):
        generate(captioner.decoder, captioner.encode(torch.rand(3, 32, 32)), masks=[mask])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forbid": 3}, "forbid takes ids as a list"),
        ({"search": Sample(seed=1), "positions": 5}, "positions are a list or a range"),
    ],
)
def test_one_number_where_a_list_belongs_is_refused(options: dict[str, Any], message: str) -> None:
    captioner = tiny_captioner()
    with pytest.raises(ArgumentError, match=message):
        generate(captioner.decoder, captioner.encode(torch.rand(3, 32, 32)), **options)
