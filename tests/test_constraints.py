"""Constraints in words: every search's captions obey them, and what can't be is said before any work."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showtell import Beam, Caption, Captioner, Constraints, DiverseBeam, Features, Greedy, Sample, Vocabulary
from showtell.cli import main
from showtell.constraints import BAD_ENDINGS, bind
from showtell.errors import ArgumentError
from showtell.metrics.diversity import BAD_ENDINGS as FLAWS
from showtell.search import Search
from showtell.testing import tiny_captioner

PHOTOS = 7
SEARCHES: list[Search] = [
    Greedy(10),
    Beam(3, 10, 0.7),
    Beam(40, 10, 1.0, "gnmt"),  # wider than the vocabulary
    DiverseBeam(4, 2, 0.5, 10),
    Sample(3, 1.5, seed=1, max_length=10),
    Sample(5, 0.7, top_k=9, top_p=0.9, min_p=0.01, seed=2, distinct=True, max_length=10),
]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner()


@pytest.fixture(scope="module")
def features(captioner: Captioner) -> Features:
    torch.manual_seed(0)
    return captioner.encode(list(torch.rand(PHOTOS, 3, 32, 32)))


def test_a_caption_without_bad_endings_has_none_that_counts_as_a_flaw() -> None:
    assert set(FLAWS) < set(BAD_ENDINGS)
    assert {"am", "because", "every", "nor", "whose"} <= FLAWS
    assert len(set(BAD_ENDINGS)) == len(BAD_ENDINGS)


def obeys(caption: Caption, wish: Constraints, limit: int) -> None:
    words = [word for word in caption.tokens if word != "<end>"]
    assert len(words) >= wish.min_length
    size = wish.no_repeat_ngram
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if size else []
    assert len(set(runs)) == len(runs)
    if wish.no_repeat_word:
        assert all(a != b for a, b in itertools.pairwise(words))
    assert not set(words) & {*wish.forbid, "<unk>", "<pad>", "<start>"}
    if wish.no_bad_endings and words:
        assert words[-1] not in BAD_ENDINGS
    assert " ".join(words).startswith(wish.prefix)
    for demand in wish.force:
        assert set(words) & ({demand} if isinstance(demand, str) else set(demand))
    assert len(caption.tokens) <= limit


def teacher_forced(captioner: Captioner, features: Features, caption: Caption, photo: int) -> torch.Tensor:
    ids = torch.tensor([[captioner.vocabulary.id_of(token) for token in caption.tokens]])
    inputs = torch.cat([torch.full((1, 1), captioner.vocabulary.start_id), ids[:, :-1]], dim=1)
    one = Features(*(None if t is None else t[photo : photo + 1] for t in features))
    with torch.no_grad():
        logits = captioner.eval()(one, inputs).logits
    return logits.log_softmax(-1).gather(2, ids.unsqueeze(2)).flatten()


WISHES = st.builds(
    Constraints,
    min_length=st.integers(0, 8),
    no_repeat_ngram=st.sampled_from([0, 1, 2, 3]),
    no_repeat_word=st.booleans(),
    forbid=st.lists(st.sampled_from(["red", "blue", "water"]), max_size=3),
    no_bad_endings=st.booleans(),
    prefix=st.sampled_from(["", "a", "a girl", "two men ride"]),
    force=st.just(()),
)
FORCED = st.lists(
    st.one_of(st.sampled_from(["dog", "bike"]), st.lists(st.sampled_from(["grass", "ball", "beach"]), min_size=1)),
    min_size=1,
    max_size=3,
    unique_by=str,
)


@settings(max_examples=40, deadline=None)
@given(wish=WISHES, force=FORCED, which=st.sampled_from(SEARCHES))
def test_captions_of_every_search_obey_and_their_log_probs_are_those_of_teacher_forcing(
    captioner: Captioner, features: Features, wish: Constraints, force: list[Any], which: Search
) -> None:
    if isinstance(which, Beam):
        wish = Constraints(**{**vars(wish), "force": force})
    found = captioner.generate(features, search=which, constraints=wish)
    assert len(found) == PHOTOS
    for photo, captions in enumerate(found):
        assert [c.score for c in captions] == sorted((c.score for c in captions), reverse=True)
        for caption in captions[:2]:
            obeys(caption, wish, which.max_length)
            forced = teacher_forced(captioner, features, caption, photo)
            assert caption.token_log_probs == pytest.approx(forced.tolist(), abs=1e-4)
            assert caption.log_prob == pytest.approx(sum(caption.token_log_probs), abs=1e-4)
            assert caption.log_prob == pytest.approx(float(forced.sum()), abs=1e-4)


@pytest.mark.parametrize("which", SEARCHES)
def test_a_list_of_constraints_has_one_for_each_photo_in_batches_of_any_size(
    captioner: Captioner, features: Features, which: Search
) -> None:
    force: dict[str, Any] = {"force": ["dog", ("ball", "bike")]} if isinstance(which, Beam) else {}
    wishes = [
        Constraints(),
        Constraints(min_length=7),
        Constraints(prefix="two men", forbid=["ride"]),
        Constraints(no_repeat_word=True, no_repeat_ngram=2, **force),
        Constraints(no_bad_endings=True, forbid=["a", "the", "dog"]),
        Constraints(prefix="a small dog", min_length=5, no_repeat_ngram=1),
        Constraints(no_repeat_ngram=3, **force),
    ]
    together = captioner.generate(features, search=which, constraints=wishes)
    for captions, wish in zip(together, wishes, strict=True):
        for caption in captions:
            obeys(caption, wish, which.max_length)
    for size in (1, 3):
        cut = captioner.generate(features, search=which, constraints=wishes, batch_size=size)
        for many, few in zip(together, cut, strict=True):
            assert [c.tokens for c in many] == [c.tokens for c in few]
            assert [c.score for c in many] == pytest.approx([c.score for c in few], abs=1e-4)
    shared = captioner.generate(features, search=which, constraints=[wishes[1]] * PHOTOS)
    alike = captioner.generate(features, search=which, constraints=wishes[1])
    assert [[c.tokens for c in each] for each in shared] == [[c.tokens for c in each] for each in alike]


@pytest.mark.parametrize("which", SEARCHES)
def test_no_photos_one_photo_and_a_thousand(captioner: Captioner, features: Features, which: Search) -> None:
    assert captioner.caption([], search=which, constraints=Constraints(min_length=3)) == []
    one = captioner.caption(torch.rand(3, 32, 32), search=which, constraints=Constraints(min_length=3))
    assert isinstance(one, Caption)
    index = torch.arange(1000) % PHOTOS
    thousand = Features(*(None if t is None else t[index] for t in features))
    found = captioner.generate(thousand, search=which, constraints=Constraints(no_repeat_word=True), batch_size=300)
    assert len(found) == 1000
    if not isinstance(which, Sample):
        few = captioner.generate(features, search=which, constraints=Constraints(no_repeat_word=True))
        assert [c[0].tokens for c in found] == [few[i][0].tokens for i in index.tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": -1}, "min_length"),
        ({"min_length": True}, "min_length"),
        ({"no_repeat_ngram": 21}, "no_repeat_ngram"),
        ({"no_repeat_word": 1}, "no_repeat_word"),
        ({"no_bad_endings": "yes"}, "no_bad_endings"),
        ({"forbid": "dog"}, r"forbid takes words as a list"),
        ({"forbid": [3]}, "forbid takes words"),
        ({"prefix": ["a"]}, "prefix must be text"),
        ({"force": "dog"}, "force must be a list"),
        ({"force": [("a", 3)]}, "force takes words"),
        ({"force": [()]}, "an empty tuple"),
        ({"force": list("abcdefg")}, "at most 6"),
    ],
)
def test_constraints_of_the_wrong_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Constraints(**options)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Constraints(forbid=["zebra", "dog", "Okapi"]), "doesn't know 'zebra', 'Okapi'"),
        (Constraints(force=["zebra", ("dog", "okapi")]), "doesn't know 'zebra', 'okapi'"),
        (Constraints(prefix="a zebra and an okapi"), "doesn't know 'zebra', 'an', 'okapi'"),
        (Constraints(forbid=["small dog"]), "forbid takes one word at a time; 'small dog' is 2 words"),
        (Constraints(force=["!"]), "force takes one word at a time; '!' is 0 words"),
        (Constraints(min_length=11), "min_length 11 is more than the search's max_length 10"),
        (Constraints(prefix="a " * 11), "the prefix has 11 words"),
        (Constraints(prefix="a red dog", forbid=["Red"]), "the prefix says 'red'"),
        (Constraints(force=[("dog", "ball")], forbid=["ball", "dog"]), "can't be forced and forbidden"),
        (Constraints(prefix="a dog a dog", no_repeat_ngram=2), "repeats 2 of its words"),
        (Constraints(prefix="a a dog", no_repeat_word=True), "the prefix repeats a word"),
        (Constraints(prefix="a dog on the " * 2, force=["dog", "red", "ball", "bike"]), "take 11 words at least"),
    ],
)
def test_what_no_caption_can_satisfy_is_refused(captioner: Captioner, wish: Constraints, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        captioner.caption(torch.rand(3, 32, 32), search=Beam(2, 10), constraints=wish)


def test_forced_words_need_beam(captioner: Captioner) -> None:
    for search in (Greedy(), DiverseBeam(), Sample()):
        with pytest.raises(ArgumentError, match="forced words need Beam"):
            captioner.caption(torch.rand(3, 32, 32), search=search, constraints=Constraints(force=["dog"]))


def test_lists_of_something_else_or_of_another_length_are_refused(captioner: Captioner, features: Features) -> None:
    wrong: list[Any] = [[Constraints()] * 2, [], "dog", [Constraints(), "dog"], {"min_length": 3}]
    for constraints in wrong:
        with pytest.raises(ArgumentError, match="constraints"):
            captioner.caption(features, constraints=constraints)
    with pytest.raises(ArgumentError, match="6 positions for 7 photos"):
        captioner.generate(features, positions=range(6))
    for wrong in (7, {*range(7)}, (n for n in range(7))):
        with pytest.raises(ArgumentError, match="positions are a list or a range"):
            captioner.generate(features, positions=wrong)  # type: ignore[arg-type]


def test_words_are_written_as_in_any_text(captioner: Captioner) -> None:
    words = captioner.vocabulary
    ids = bind(Constraints(forbid=["Dog", "RED"], prefix="A Girl!"), 1, words, Beam())
    assert ids == bind(Constraints(forbid=("red", "dog", "dog"), prefix="a girl"), 1, words, Beam())


def test_pieces_of_words_are_told_apart_from_words() -> None:
    words = Vocabulary.build(["a dog runs on the grass"] * 5, kind="bpe", min_count=2)
    assert len(bind(Constraints(prefix="a zebra", no_bad_endings=True), 1, words, Greedy()).masks) == 2
    with pytest.raises(ArgumentError, match=r"'zebra' is \d+ pieces"):
        bind(Constraints(forbid=["zebra"]), 1, words, Greedy())


def test_a_seed_samples_the_same_captions_whatever_the_batch_and_the_files_that_fail(
    captioner: Captioner, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    paths = [photos[0], tmp_path / "bad.jpg", photos[0], photos[1], photos[0]]
    rows = {size: list(captioner.caption_iter(paths, search="sample:seed=5", batch_size=size)) for size in (1, 2, 5)}
    texts = {size: [row.caption and row.caption.tokens for row in some] for size, some in rows.items()}
    assert texts[1] == texts[2] == texts[5]
    rest = captioner.caption_iter(paths[2:], search="sample:seed=5", batch_size=2, start=2)
    assert [row.caption and row.caption.tokens for row in rest] == texts[2][2:], "a run that continues draws as one"
    good = [paths[0], paths[2], paths[3], paths[4]]
    found = captioner.generate(good, search="sample:seed=5", positions=[0, 2, 3, 4])
    assert [best[0].tokens for best in found] == [text for text in texts[5] if text]
    assert len(set(texts[5])) > 2, "equal photos are drawn alike"


def test_the_command_line_takes_constraints(
    captioner: Captioner, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner.save_pretrained(tmp_path / "model")
    base = ["caption", str(photos[0]), "--model", str(tmp_path / "model"), "--search", "beam:3"]
    base += ["--prefix", "a small dog", "--forbid", "red", "--forbid", "blue", "--no-repeat-word"]
    output = tmp_path / "rows.jsonl"
    many = [*base, "--min-length", "7", "--no-repeat-ngram", "2", "--force", "grass|water", "--force", "beach"]
    assert main([*many, "--output", str(output), "--no-bad-endings"]) == 0
    [row] = map(json.loads, output.read_text().splitlines())
    words = row["caption"].split()
    assert row["caption"].startswith("a small dog")
    assert len(words) >= 7
    assert "beach" in words
    assert {"grass", "water"} & set(words)
    assert not {"red", "blue"} & set(words)
    capsys.readouterr()
    assert main([*many, "--output", str(output), "--no-bad-endings"]) == 0, "the same command continues"
    assert main([*many, "--output", str(output)]) == 2, "other constraints are another run"
    assert "different: constraints" in capsys.readouterr().err
    fresh = tmp_path / "fresh.jsonl"
    for wrong in (["--force", "zebra"], ["--min-length", "-1"], ["--min-length", "21"], ["--force", ""]):
        assert main([*base, *wrong, "--output", str(fresh)]) == 2
        assert not fresh.exists(), "what can't be done leaves no file"
    base[base.index("beam:3")] = "greedy"
    assert main([*base, "--force", "dog"]) == 2
    assert "forced words need Beam" in capsys.readouterr().err
