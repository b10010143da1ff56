"""How likely given captions are, and the orders this gives."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell import ranking, scoring
from showtell.caption import Caption
from showtell.captioner import Captioner
from showtell.errors import ArgumentError, ImageError, NotFoundError, RunError
from showtell.generate import generate
from showtell.protocols import Features, Forced
from showtell.rows import Rows
from showtell.search import Beam, DiverseBeam, Greedy, Hypotheses, Sample, Search
from showtell.search.masks import MinLength, NoRepeatedWord
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.vocabulary import Vocabulary

SEARCHES: list[Search] = [
    Greedy(9),
    Beam(4, 9),
    Beam(3, 6, 0.9, "gnmt"),
    DiverseBeam(4, 2, 0.5, 9),
    Sample(5, 1.3, top_p=0.98, seed=4, max_length=9),
    Sample(3, seed=1, distinct=True, max_length=2),
]
DECODERS = ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"]


def photos(count: int, seed: int = 0) -> list[Any]:
    return list(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


def one(found: Any) -> Caption:
    assert isinstance(found, Caption)
    return found


def by_hand(captioner: Captioner, image: Any, tokens: tuple[str, ...]) -> list[float]:
    """The log-probability of each token, by stepping through one caption."""
    ids = [captioner.vocabulary.id_of(token) for token in tokens]
    found: list[float] = []
    with torch.no_grad():
        memory = captioner.decoder.prepare(captioner.encode(image))
        state = captioner.decoder.initial_state(memory, len(ids))
        for before, now in zip([captioner.vocabulary.start_id, *ids[:-1]], ids, strict=True):
            logits, state = captioner.decoder.step(torch.tensor([before]), state, memory)
            found.append(float(logits.log_softmax(1)[0, now]))
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES, ids=repr)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_a_found_caption_scores_what_the_search_said(search: Search, dtype: torch.dtype, error: float) -> None:
    for decoder in DECODERS:
        captioner = tiny_captioner(decoder=decoder).eval().to(dtype)
        images = photos(4)
        found = captioner.generate(images, search=search)
        scored = captioner.score(images, [[caption.tokens for caption in each] for each in found], batch_size=3)
        assert isinstance(scored, list)
        for before, after in zip(found, scored, strict=True):
            assert isinstance(after, list)
            assert [c.tokens for c in after] == [c.tokens for c in before]
            assert [c.text for c in after] == [c.text for c in before]
            for said, now in zip(before, after, strict=True):
                assert now.token_log_probs == pytest.approx(said.token_log_probs, abs=error)
                assert now.log_prob == pytest.approx(said.log_prob, abs=error)
                assert now.score == now.log_prob == sum(now.token_log_probs)


def test_a_caption_found_under_masks_and_forced_words_scores_what_the_search_said() -> None:
    captioner = tiny_captioner(decoder="adaptive-lstm.v1").eval().double()
    words, images = captioner.vocabulary, photos(3)
    features = captioner.encode(images)
    masks = [MinLength(4, words.end_id), NoRepeatedWord()]
    dog, ball, grass = (words.id_of(word) for word in ("dog", "ball", "grass"))
    forced = [[[dog]], [[ball, grass], [dog]], []]

    def check(found: Hypotheses) -> None:
        for image in range(3):
            for tokens, length, total in zip(
                found.tokens[image].tolist(),
                found.lengths[image].tolist(),
                found.log_probs[image].tolist(),
                strict=True,
            ):
                given = tuple(map(words.token_of, tokens[:length]))
                assert one(captioner.score(images[image], given)).log_prob == pytest.approx(total, abs=1e-9)

    for search in SEARCHES[:4]:
        check(generate(captioner.decoder, features, search, masks=masks))
    check(generate(captioner.decoder, features, Beam(3, 9), masks=masks, force=forced))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_score_is_what_stepping_by_hand_gives(decoder: str) -> None:
    captioner = tiny_captioner(decoder=decoder).eval()
    image = photos(1)[0]
    for caption, tokens in [
        ("A dog runs!", ("a", "dog", "runs", "<end>")),
        ("a zebra on the grass", ("a", "<unk>", "on", "the", "grass", "<end>")),
        (("a", "dog"), ("a", "dog")),
        (("<end>",), ("<end>",)),
    ]:
        scored = one(captioner.score(image, caption))
        assert scored.tokens == tokens
        assert list(scored.token_log_probs) == pytest.approx(by_hand(captioner, image, tokens), abs=1e-5)
    assert one(captioner.score(image, "a zebra on the grass")).text == "a zebra on the grass"
    assert one(captioner.score(image, ("a", "dog"))).text == "a dog"
    assert one(captioner.score(image, ("<end>",))).text == ""


def test_photos_together_give_what_each_gives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner(decoder="transformer.v1").eval()
    images = photos(5)
    captions: list[Any] = [
        "a dog",
        ["a red ball", ("a", "girl", "<end>")],
        [],
        "two men ride a bike on the beach",
        ["a"],
    ]
    alone = [captioner.score(image, caption) for image, caption in zip(images, captions, strict=True)]
    features = captioner.encode(images)
    for limit in (2**24, 1000, 1):  # all in one pass; a few captions in each; one
        monkeypatch.setattr(scoring, "_MOST_SCORES", limit)
        for given in (images, features, tuple(images)):
            together = captioner.score(given, captions, batch_size=4)
            assert isinstance(together, list)
            for expected, found in zip(alone, together, strict=True):
                assert isinstance(found, list) == isinstance(expected, list)
                pairs = zip(*([c] if isinstance(c, Caption) else c for c in (expected, found)), strict=True)
                for ours, theirs in pairs:
                    assert isinstance(ours, Caption)
                    assert isinstance(theirs, Caption)
                    assert ours.tokens == theirs.tokens
                    assert ours.token_log_probs == pytest.approx(theirs.token_log_probs, abs=1e-5)
    assert captioner.score([], []) == []
    assert captioner.score(images[0], []) == []
    assert captioner.score(images[:2], [[], []]) == [[], []]


def test_each_photo_is_encoded_once_and_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner().eval()
    encoded: list[int] = []
    encode = TinyEncoder.forward

    def counted(self: TinyEncoder, images: Tensor) -> Features:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(TinyEncoder, "forward", counted)
    captioner.score(photos(5), [["a dog"] * 7] * 5, batch_size=2)
    assert encoded == [2, 2, 1]
    encoded.clear()
    captioner.rank(photos(5), ["a dog", "a cat on the grass"] * 3, batch_size=3)
    assert encoded == [3, 2]


def test_scoring_leaves_the_mode_the_random_state_and_the_gradients_alone() -> None:
    captioner = tiny_captioner(dropout=0.5).train()
    state = torch.random.get_rng_state()
    image = photos(1)[0]
    first, second = (one(captioner.score(image, "a dog runs")) for _ in range(2))
    matrix = captioner.rank(photos(2), ["a dog"]).log_probs
    assert first == second
    assert all(module.training for module in captioner.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not matrix.is_inference()
    assert torch.is_grad_enabled()


def test_captions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    captioner, image = tiny_captioner(), photos(1)[0]
    for silent in ("", "  ", "!!!"):
        with pytest.raises(ArgumentError, match="has no words"):
            captioner.score(image, silent)
    with pytest.raises(ArgumentError, match="no tokens"):
        captioner.score(image, ())
    with pytest.raises(ArgumentError, match="no 'a dog'; a tuple holds the tokens of one caption"):
        captioner.score(image, ("a dog", "a cat"))
    with pytest.raises(ArgumentError, match="no 'zebra'"):
        captioner.score(image, replace(one(captioner.caption(image)), tokens=("a", "zebra")))
    for wrong in (("a", "<end>", "dog"), ("<start>", "a"), ("a", "<pad>"), ("<end>", "<end>")):
        with pytest.raises(ArgumentError, match="aren't a caption's"):
            captioner.score(image, wrong)
    with pytest.raises(ArgumentError, match="1,001 tokens is too long"):
        captioner.score(image, "a " * 1000)
    assert len(one(captioner.score(image, "a " * 999)).tokens) == 1000
    for strange in (5, None, b"a", {"a": 1}):
        with pytest.raises(ArgumentError, match="a caption is a text"):
            captioner.score(image, strange)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="2 photos and captions for 1"):
        captioner.score([image, image], ["a dog"])
    with pytest.raises(ArgumentError, match="with a list of captions, not str"):
        captioner.score([image], "a dog")
    with pytest.raises(ArgumentError, match="batch_size"):
        captioner.score(image, "a dog", batch_size=0)
    with pytest.raises(NotFoundError):
        captioner.score(tmp_path / "absent.jpg", "a dog")
    with pytest.raises(ImageError):
        captioner.score(b"nothing", "a dog")
    long = tiny_captioner(decoder="transformer.v1")
    with pytest.raises(ArgumentError, match="make captions shorter"):
        long.score(image, "a " * 900)


def test_nan_is_an_error_that_names_the_photo() -> None:
    captioner = tiny_captioner().eval()
    features = captioner.encode(photos(4)).pooled.clone()
    features[2] = math.nan
    with pytest.raises(RunError, match=r"image 2: the decoder returned NaN"):
        captioner.score(Features(features), ["a dog"] * 4, batch_size=3)
    with pytest.raises(RunError, match=r"image 2: the decoder returned NaN"):
        captioner.rank(Features(features), ["a dog"], batch_size=1)


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_a_ranking_holds_what_scoring_every_pair_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = tiny_captioner(decoder="attention-lstm.v1").eval()
    images = photos(5)
    captions: list[Any] = [
        "a red ball on the grass",
        "a dog",
        ("a", "girl"),
        "a zebra",
        one(captioner.caption(images[1])),
    ]
    expected = [[one(captioner.score(image, caption)) for caption in captions] for image in images]
    matrix = torch.tensor([[caption.log_prob for caption in row] for row in expected])
    lengths = torch.tensor([len(caption.tokens) for caption in expected[0]])
    for limit in (2**24, 400, 1):
        monkeypatch.setattr(scoring, "_MOST_SCORES", limit)
        found = captioner.rank(images, captions, batch_size=2)
        torch.testing.assert_close(found.log_probs, matrix, atol=1e-5, rtol=0)
        assert torch.equal(found.lengths, lengths)
        assert torch.equal(found.scores, found.log_probs)
    assert found.captions[:4] == ("a red ball on the grass", "a dog", "a girl", "a zebra")
    rows = found.scores.tolist()
    for image in range(5):
        assert found.caption_order[image].tolist() == sorted(range(5), key=lambda c: (-rows[image][c], c))
    for caption in range(5):
        assert found.image_order[caption].tolist() == sorted(range(5), key=lambda i: (-rows[i][caption], i))
    torch.testing.assert_close(captioner.rank(images, captions, by="per_token").scores, matrix / lengths)


def test_pmi_compares_with_the_mean_probability_over_the_background() -> None:
    captioner = tiny_captioner().eval().double()
    images, others = photos(3), photos(4, seed=1)
    captions = ["a dog", "two men ride a bike"]
    matrix = [[one(captioner.score(image, c)).log_prob for c in captions] for image in images]
    for background in (None, others):
        found = captioner.rank(images, captions, by="pmi", background=background)
        for place, caption in enumerate(captions):
            chances = [math.exp(one(captioner.score(i, caption)).log_prob) for i in background or images]
            usual = math.log(sum(chances) / len(chances))
            for image in range(3):
                assert float(found.scores[image, place]) == pytest.approx(matrix[image][place] - usual, abs=1e-9)
    single = captioner.rank(images[0], captions, by="pmi", background=others)
    torch.testing.assert_close(single.scores, found.scores[:1])


class Lean(nn.Module):
    """A decoder that likes "a dog" on any photo, and on bright ones "a cat" a bit more than on dark ones."""

    has_attention = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocab_size = len(vocabulary)
        self.cat = vocabulary.id_of("cat")
        self.dog = vocabulary.id_of("dog")

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, features: Features) -> Rows:
        return {"bright": features.pooled.mean(1)}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"t": torch.zeros(len(memory["bright"]))}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        raise AssertionError("scoring is one forced pass")

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        bright = memory["bright"].repeat_interleave(len(tokens) // len(memory["bright"]))
        logits[:, :, self.dog] = 4.0
        logits[:, :, self.cat] = bright.unsqueeze(1)
        return Forced(logits)


class Mean(TinyEncoder):
    def forward(self, images: Tensor) -> Features:
        return Features(images.mean((1, 2, 3)).unsqueeze(1).expand(-1, 16))


def test_pmi_finds_the_caption_that_suits_the_photo_where_log_prob_finds_the_usual_one() -> None:
    vocabulary = Vocabulary.build(["a cat", "a dog"], min_count=1)
    captioner = Captioner(Mean(), Lean(vocabulary), vocabulary)
    images = [torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]
    plain = captioner.rank(images, ["a cat", "a dog"])
    corrected = captioner.rank(images, ["a cat", "a dog"], by="pmi")
    assert plain.caption_order[:, 0].tolist() == [1, 1]
    assert corrected.caption_order[:, 0].tolist() == [1, 0]
    assert plain.image_order[0].tolist() == corrected.image_order[0].tolist() == [1, 0]


def test_a_ranking_of_nothing_is_empty_and_nonsense_is_refused() -> None:
    captioner, images = tiny_captioner(), photos(2)
    assert captioner.rank([], ["a dog"]).scores.shape == (0, 1)
    assert captioner.rank(images, []).scores.shape == (2, 0)
    assert captioner.rank(images, []).image_order.shape == (0, 2)
    assert captioner.rank(images[0], ["a dog", "a dog"]).caption_order.tolist() == [[0, 1]]
    with pytest.raises(ArgumentError, match="rank takes a list of captions, not 'a dog'"):
        captioner.rank(images, "a dog")
    with pytest.raises(ArgumentError, match="by must be one of"):
        captioner.rank(images, ["a dog"], by="luck")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match='a background belongs to by="pmi"'):
        captioner.rank(images, ["a dog"], background=images)
    for given, background in ((images[0], None), (images, images[:1])):
        with pytest.raises(ArgumentError, match="at least 2; pass more of them as background"):
            captioner.rank(given, ["a dog"], by="pmi", background=background)
    with pytest.raises(ArgumentError, match="has no words"):
        captioner.rank(images, ["a dog", ""])
    with pytest.raises(ArgumentError, match="batch_size"):
        captioner.rank(images, ["a dog"], batch_size=-1)
    assert ranking.rank(captioner, images, ["a dog"]).captions == ("a dog",)
