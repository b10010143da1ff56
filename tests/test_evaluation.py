"""`evaluate`, `score_predictions`, saved results and signatures; the metrics themselves have tests of their own."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import showtell
from showtell.captioner import Captioner
from showtell.data import Batch, Record
from showtell.errors import ArgumentError, FormatError, MissingPackageError, NotFoundError, RunError, ShowtellError
from showtell.evaluation import Evaluation, ScoredPhoto, Signature, evaluate, score_predictions, teacher_forced_loss
from showtell.metrics import METRICS, DocumentFrequencies, ptb_tokenize, score_captions
from showtell.protocols import Features
from showtell.search import Greedy
from showtell.testing import tiny_captioner

REFERENCES = [["a dog runs", "the dog"], ["a cat"], ["two birds, in a tree"], ["a dog"], ["a man's hat"]]


@pytest.fixture
def captioner() -> Captioner:
    return tiny_captioner()


@pytest.fixture
def photos() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, 32, 32, generator=generator) for _ in REFERENCES]


def records_of(photos: Sequence[Any]) -> list[Record]:
    return [
        Record(f"{i}.jpg", photo, tuple(REFERENCES[i]), "val", f"captions.csv:{i + 2}")
        for i, photo in enumerate(photos)
    ]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_captions_that_caption_gives(captioner: Captioner, photos: list[Tensor]) -> None:
    result = evaluate(captioner, photos, REFERENCES, search="beam:3", batch_size=2, name="tiny")
    expected = captioner.caption(photos, search="beam:3")
    assert isinstance(expected, list)
    assert result.captions == tuple(caption.text for caption in expected)
    assert [photo.log_prob for photo in result.photos] == pytest.approx([caption.log_prob for caption in expected])
    assert result.scores == score_captions([caption.text for caption in expected], REFERENCES)
    assert tuple(result.scores.corpus) == tuple(result.scores.each) == METRICS
    assert result.name == "tiny"
    assert result.health.captions == 5
    assert [(photo.id, photo.references, photo.image) for photo in result.photos] == [
        (f"{i}", tuple(references), None) for i, references in enumerate(REFERENCES)
    ]


def brute_force_cider_d(candidates: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """CIDEr-D from its definition, a dictionary of n-grams at a time."""

    def grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def weigh(counts: Counter[tuple[str, ...]], n: int) -> dict[tuple[str, ...], float]:
        seen = [set().union(*(grams(r, n) for r in refs)) for refs in references]
        return {
            g: c * (math.log(len(references)) - math.log(max(1, sum(g in s for s in seen)))) for g, c in counts.items()
        }

    def length(vector: dict[tuple[str, ...], float]) -> float:
        return math.sqrt(sum(v * v for v in vector.values()))

    scores = []
    for candidate, refs in zip(candidates, references, strict=True):
        total = 0.0
        for reference in refs:
            gap = max(0, len(candidate) - 1) - max(0, len(reference) - 1)
            for n in range(1, 5):
                c, r = weigh(grams(candidate, n), n), weigh(grams(reference, n), n)
                dot = sum(min(v, r.get(g, 0.0)) * r.get(g, 0.0) for g, v in c.items())
                norm = length(c) * length(r)
                total += (dot / norm if norm else dot) * math.exp(-(gap**2) / 72)
        scores.append(10 * total / len(refs) / 4)
    return scores


def test_cider_d_weighs_by_the_references_of_the_photos_that_are_scored() -> None:
    candidates = ["a brown dog runs on the grass", "a man rides a red bike", "two dogs play", "a dog"]
    references = [
        ["a brown dog runs on grass", "the dog runs on the grass"],
        ["a man rides a bike down a hill"],
        ["two brown dogs play with a ball", "dogs play", "two dogs"],
        ["a black cat sleeps"],
    ]
    photos = [ScoredPhoto(f"{i}", c, tuple(r)) for i, (c, r) in enumerate(zip(candidates, references, strict=True))]
    expected = brute_force_cider_d([c.split() for c in candidates], [[r.split() for r in rs] for rs in references])
    result = score_predictions("mine", photos)
    assert result.scores.each["CIDEr-D"] == pytest.approx(expected, abs=1e-9)
    assert result.scores.corpus["CIDEr-D"] == pytest.approx(sum(expected) / 4, abs=1e-9)
    assert 0.5 < result.scores.corpus["CIDEr-D"] < 9
    few = score_predictions("mine", photos[:2])
    assert few.scores.each["CIDEr-D"] == pytest.approx(
        brute_force_cider_d([c.split() for c in candidates[:2]], [[r.split() for r in rs] for rs in references[:2]]),
        abs=1e-9,
    )
    assert few.scores.each["CIDEr-D"][0] != pytest.approx(expected[0], abs=1e-3)
    kept = DocumentFrequencies.of([[r.split() for r in rs] for rs in references])
    again = score_predictions("mine", photos[:2], frequencies=kept)
    assert again.scores.each["CIDEr-D"] == pytest.approx(expected[:2], abs=1e-9)
    assert score_predictions("mine", photos, frequencies=kept).scores == result.scores


def test_one_photo_has_a_cider_d_of_zero_whatever_its_caption() -> None:
    result = score_predictions("mine", [ScoredPhoto("1", "a dog runs on grass", ("a dog runs on grass",))])
    assert result.scores.corpus["CIDEr-D"] == result.scores.corpus["CIDEr"] == 0.0
    assert result.scores.corpus["BLEU-4"] == pytest.approx(1.0, abs=1e-6)


def test_only_the_metrics_that_are_asked_for_are_there() -> None:
    photos = [ScoredPhoto("1", "a dog", ("a dog",)), ScoredPhoto("2", "a cat", ("the cat",))]
    result = score_predictions("mine", photos, metrics=("ROUGE-L", "BLEU-1"))
    assert set(result.scores.corpus) == set(result.scores.each) == {"ROUGE-L", "BLEU-1"}
    assert result.signature.metrics == ("ROUGE-L", "BLEU-1")
    # Precision and recall of "a cat" in "the cat" are 1/2, and F is 1/2 whatever weighs them.
    assert result.scores.each["ROUGE-L"] == pytest.approx((1.0, 0.5))
    assert result.scores.corpus["BLEU-1"] == pytest.approx(3 / 4, abs=1e-6)


def test_photos_features_and_functions_give_the_same(captioner: Captioner, photos: list[Tensor]) -> None:
    features = captioner.encode(photos)
    asked: list[int] = []

    def some(positions: Sequence[int]) -> Features:
        asked.extend(positions)
        return Features(features.pooled[list(positions)])

    def pixels(positions: Sequence[int]) -> Tensor:
        return torch.stack([photos[i] for i in positions])

    results = [evaluate(captioner, x, REFERENCES, batch_size=2) for x in (photos, features, some, pixels)]
    assert asked == list(range(5))
    for result in results[1:]:
        assert result.scores == results[0].scores
        assert result.captions == results[0].captions
        assert result.signature == results[0].signature


def test_records_bring_their_ids_their_captions_and_their_files(captioner: Captioner, tmp_path: Path) -> None:
    from PIL import Image

    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        Image.new("RGB", (20, 20), (i * 50, 99, 200 - i)).save(file)
    records = records_of(files)
    result = evaluate(captioner, records)
    assert [photo.id for photo in result.photos] == [f"{i}.jpg" for i in range(5)]
    assert [photo.image for photo in result.photos] == list(map(str, files))
    plain = evaluate(captioner, files, REFERENCES, ids=[record.id for record in records])
    assert (result.photos, result.signature) == (plain.photos, plain.signature)
    loaded = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files]
    in_memory = evaluate(captioner, records_of(loaded))
    assert in_memory.captions == result.captions
    assert {photo.image for photo in in_memory.photos} == {None}
    assert in_memory.signature == result.signature
    for options in ({"references": REFERENCES}, {"ids": list("abcde")}):
        with pytest.raises(ArgumentError, match="records bring their own"):
            evaluate(captioner, records, **options)


def test_the_signature_says_how_captions_were_found(captioner: Captioner, photos: list[Tensor]) -> None:
    for given, said in (
        (None, "greedy:max_length=20"),
        ("beam:3,length_penalty=0.7", "beam:size=3,max_length=20,length_penalty=0.7"),
        (Greedy(max_length=7), "greedy:max_length=7"),
    ):
        assert evaluate(captioner, photos, REFERENCES, search=given).signature.search == said
    captioner.search = Greedy(max_length=3)
    assert evaluate(captioner, photos, REFERENCES).signature.search == "greedy:max_length=3"


def test_novelty_is_the_share_of_captions_that_the_training_captions_do_not_have(
    captioner: Captioner, photos: list[Tensor]
) -> None:
    assert evaluate(captioner, photos, REFERENCES).health.novelty is None
    captions = list(evaluate(captioner, photos, REFERENCES).captions)
    known = evaluate(captioner, photos, REFERENCES, training=captions)
    assert known.health.novelty == 0.0
    known = evaluate(captioner, photos, REFERENCES, training=["something else entirely"])
    assert known.health.novelty == 1.0


def test_the_loss_is_the_mean_over_real_words_however_batched(captioner: Captioner, photos: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    size = len(captioner.vocabulary)
    tokens = torch.randint(size, (5, 6), generator=generator)
    targets = torch.randint(size, (5, 6), generator=generator)
    weights = (torch.arange(6) < torch.tensor([[1], [6], [3], [4], [2]])).float()
    images = torch.stack(photos)
    whole = Batch(images, tokens, targets, weights, False)
    parts = [Batch(*(t[i:j] for t in whole[:4]), False) for i, j in ((0, 1), (1, 4), (4, 5))]
    log_probs = captioner(images, tokens).logits.detach().double().log_softmax(-1)
    real = [-float(log_probs[r, t, targets[r, t]]) for r in range(5) for t in range(6) if weights[r, t]]
    assert len(real) == 16
    for batches in ([whole], parts):
        assert teacher_forced_loss(captioner, batches) == pytest.approx(sum(real) / 16, rel=1e-5)


def test_a_captioner_in_training_is_evaluated_without_dropout_and_trains_on(
    captioner: Captioner, photos: list[Tensor]
) -> None:
    expected = evaluate(captioner.eval(), photos, REFERENCES)
    captioner.train()
    captioner.encoder.eval()
    modes = [m.training for m in captioner.modules()]
    assert evaluate(captioner, photos, REFERENCES) == expected
    words = torch.ones(5, 1, dtype=torch.int64)
    batch = Batch(torch.stack(photos), words, words + 1, torch.ones(5, 1), False)
    assert teacher_forced_loss(captioner, [batch]) == teacher_forced_loss(captioner, [batch])
    assert [m.training for m in captioner.modules()] == modes


def test_clumsy_input_is_refused_before_any_photo_is_captioned(
    captioner: Captioner, photos: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_photo(positions: Sequence[int]) -> Tensor:
        raise AssertionError("a photo was asked for")

    for options, message in (
        ({"references": []}, "at least one photo"),
        ({"references": None}, "at least one photo"),
        ({"references": 5}, "list of captions for each photo"),
        ({"references": ["a dog"] * 5}, "list of captions for each photo"),
        ({"references": [[]] * 5}, "list of captions for each photo"),
        ({"references": [[None]] * 5}, "list of captions for each photo"),
        ({"references": [5] * 5}, "list of captions for each photo"),
        ({"references": REFERENCES, "batch_size": 0}, "batch_size"),
        ({"references": REFERENCES, "ids": ["a"]}, "1 ids for 5 photos"),
        ({"references": REFERENCES, "ids": list("abcda")}, "'a' is given twice"),
        ({"references": REFERENCES, "metrics": ("BLEU-5",)}, "BLEU-5"),
        ({"references": REFERENCES, "metrics": "BLEU-4"}, "metric"),
        ({"references": REFERENCES, "metrics": ()}, "metric"),
        ({"references": REFERENCES, "search": "beam:0"}, "size"),
        ({"references": REFERENCES, "frequencies": {"a": 1}}, "must be DocumentFrequencies, not dict"),
        ({"references": REFERENCES, "frequencies": DocumentFrequencies.of([[[4, 7]]])}, "those of words.*count 4"),
    ):
        with pytest.raises(ArgumentError, match=message):
            evaluate(captioner, no_photo, **options)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        patched.setattr("showtell.evaluation.run.coco_problem", lambda metric: f"{metric} needs Java")
        with pytest.raises(MissingPackageError, match="METEOR needs Java"):
            evaluate(captioner, no_photo, REFERENCES, metrics=("BLEU-4", "METEOR"))
    for inputs in (5, None, "photo.jpg", iter(photos), {"a": photos[0]}):
        with pytest.raises(ArgumentError, match="photos as a list"):
            evaluate(captioner, inputs, REFERENCES)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="5 photos but references for 4"):
        evaluate(captioner, photos, REFERENCES[:4])
    with pytest.raises(ArgumentError, match="photo 4 is no record"):
        evaluate(captioner, [*records_of(photos)[:4], photos[4]])
    with pytest.raises(ArgumentError, match="takes a Captioner"):
        evaluate("runs/holiday", photos, REFERENCES)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no word"):
        teacher_forced_loss(captioner, [])


# --- predictions ------------------------------------------------------------------------------------------------------

PHOTOS = [
    ScoredPhoto("dog.jpg", "a dog runs", ("a dog runs fast", "the wet dog"), "photos/dog.jpg", -3.5),
    ScoredPhoto("cat.jpg", "", ("a cat",)),
    ScoredPhoto("Ünï\ud800.jpg", "l’été <unk>\n", ("été, ça va?", "x")),
]


def test_a_photo_that_cannot_be_scored_or_saved_is_refused() -> None:
    for arguments, message in (
        ((5, "a dog", ("a dog",)), "the id"),
        (("1", None, ("a dog",)), "the caption"),
        (("1", ["a dog"], ("a dog",)), "the caption"),
        (("1", "a dog", ()), "at least one reference"),
        (("1", "a dog", "a dog"), "at least one reference"),
        (("1", "a dog", ("a dog", None)), "at least one reference"),
        (("1", "a dog", 5), "at least one reference"),
        (("1", "a dog", ("a dog",), Path("dog.jpg")), "the image"),
        (("1", "a dog", ("a dog",), None, math.nan), "log_prob"),
        (("1", "a dog", ("a dog",), None, -math.inf), "log_prob"),
        (("1", "a dog", ("a dog",), None, True), "log_prob"),
        (("1", "a dog", ("a dog",), None, "-1"), "log_prob"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ScoredPhoto(*arguments)  # type: ignore[arg-type]
    assert ScoredPhoto("1", "a", ["a", "b"]).references == ("a", "b")  # type: ignore[arg-type]


def test_predictions_that_cannot_be_scored_are_refused() -> None:
    for arguments, message in (
        (("mine", []), "photo"),
        (("mine", "photos.jsonl"), "list of ScoredPhoto"),
        (("mine", [{"id": "1"}]), "list of ScoredPhoto"),
        (("mine", None), "list of ScoredPhoto"),
        ((5, PHOTOS), "name"),
        (("mine", [PHOTOS[0], PHOTOS[1], PHOTOS[0]]), "'dog.jpg' is given twice"),
    ):
        with pytest.raises(ArgumentError, match=message):
            score_predictions(*arguments)  # type: ignore[arg-type]


def test_predictions_of_unknown_origin_say_so_in_their_signature() -> None:
    assert score_predictions("mine", PHOTOS).signature.search == "given"
    assert score_predictions("mine", PHOTOS, search="nucleus").signature.search == "nucleus"


# --- signatures -------------------------------------------------------------------------------------------------------

PAIRS = [("dog.jpg", ("a dog", "a wet dog")), ("cat.jpg", ("a cat", "the cat")), ("10", ("one",))]


def signature_of(pairs: Any) -> Signature:
    return Signature.of(pairs, metrics=METRICS, search="given")


def test_the_order_of_photos_does_not_matter_to_the_signature_and_all_else_of_the_data_does() -> None:
    first = signature_of(PAIRS)
    assert first.references == "1-2"
    assert first.images == 3
    assert signature_of(PAIRS[::-1]) == first
    assert signature_of([(identity, list(references)) for identity, references in PAIRS]) == first
    seen = {first.data}
    for other in (
        [("dog.jpeg", PAIRS[0][1]), *PAIRS[1:]],
        [("dog.jpg", ("a dog", "a wet dog.")), *PAIRS[1:]],
        [("dog.jpg", ("a wet dog", "a dog")), *PAIRS[1:]],
        [("dog.jpg", ("a dog", "a wet dog", "a wet dog")), *PAIRS[1:]],
        [("dog.jpg", ("a doga wet dog",)), *PAIRS[1:]],
        [("dog.jpg", PAIRS[1][1]), ("cat.jpg", PAIRS[0][1]), PAIRS[2]],
        PAIRS[:2],
    ):
        data = signature_of(other).data
        assert data not in seen
        seen.add(data)
    # By hand: the pairs sorted by id, as JSON, hashed.
    text = '[["10", ["one"]], ["cat.jpg", ["a cat", "the cat"]], ["dog.jpg", ["a dog", "a wet dog"]]]'
    assert first.data == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_what_the_captions_say_does_not_change_the_signature() -> None:
    other = [replace(photo, caption="something else", log_prob=None, image=None) for photo in PHOTOS]
    assert score_predictions("a", PHOTOS).signature == score_predictions("b", other).signature


def test_a_signature_is_one_line_with_everything_in_it() -> None:
    signature = Signature.of(PAIRS, metrics=METRICS, search="beam:size=3,max_length=20,length_penalty=0.7")
    version = showtell.__version__
    assert str(signature) == (
        "metrics:BLEU-1..4+ROUGE-L+CIDEr-D+CIDEr|tokenizer:ptb-1|references:1-2|images:3"
        f"|search:beam:size=3,max_length=20,length_penalty=0.7|version:{version}|data:{signature.data}"
    )
    assert "metrics:BLEU-1+BLEU-4|" in str(Signature.of(PAIRS, metrics=("BLEU-1", "BLEU-4"), search="given"))


def test_differences_name_each_field_with_both_values() -> None:
    first = signature_of(PAIRS)
    assert first.differences(first) == ()
    assert first.differences(signature_of(PAIRS[::-1])) == ()
    for change, said in (
        ({"metrics": ("BLEU-4",)}, "metrics: BLEU-1+BLEU-2+BLEU-3+BLEU-4+ROUGE-L+CIDEr-D+CIDEr against BLEU-4"),
        ({"tokenizer": "ptb-2"}, "tokenizer: ptb-1 against ptb-2"),
        ({"references": "5"}, "references: 1-2 against 5"),
        ({"images": 4}, "images: 3 against 4"),
        ({"frequencies": "0" * 12}, f"frequencies: own against {'0' * 12}"),
        ({"search": "greedy"}, "search: given against greedy"),
        ({"search": "a\x1b[2J"}, r"search: given against 'a\x1b[2J'"),
        ({"search": "x" * 9999}, f"search: given against '{'x' * 199}"),
        ({"version": "9.9"}, f"version: {showtell.__version__} against 9.9"),
        ({"data": "0" * 12}, f"data: {first.data} against {'0' * 12}"),
    ):
        assert first.differences(replace(first, **change)) == (said,)  # type: ignore[arg-type]
    both = first.differences(replace(first, images=4, search="greedy"))
    assert both == ("images: 3 against 4", "search: given against greedy")


def test_a_signature_survives_json_and_anything_else_is_refused() -> None:
    first = signature_of(PAIRS)
    assert Signature.from_json(json.loads(json.dumps(first.to_json()))) == first
    good = first.to_json()
    for bad in (
        None,
        [],
        "metrics:BLEU-4",
        {},
        {**good, "more": 1},
        {key: good[key] for key in good if key != "data"},
        {**good, "images": "3"},
        {**good, "images": True},
        {**good, "images": 3.0},
        {**good, "references": 5},
        {**good, "metrics": "BLEU-4"},
        {**good, "metrics": [4]},
        {**good, "search": None},
    ):
        with pytest.raises(FormatError, match="a signature has the fields"):
            Signature.from_json(bad)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_result_comes_back_whole(tmp_path: Path) -> None:
    result = score_predictions("Ünïcode 💡", PHOTOS, training=["a cat"])
    result.save(tmp_path / "scores.json")
    assert Evaluation.load(tmp_path / "scores.json") == result
    assert Evaluation.load(str(tmp_path / "scores.json")) == result
    first = (tmp_path / "scores.json").read_bytes()
    assert first.isascii()
    Evaluation.load(tmp_path / "scores.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.json", "scores.json"]


def test_a_result_of_a_captioner_comes_back_whole(captioner: Captioner, photos: list[Tensor], tmp_path: Path) -> None:
    result = evaluate(captioner, photos, REFERENCES, metrics=("CIDEr-D",))
    result.save(tmp_path / "scores.json")
    assert Evaluation.load(tmp_path / "scores.json") == result


def test_a_result_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    result = score_predictions("mine", PHOTOS)
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "gone" / "scores.json", tmp_path / "folder"):
        with pytest.raises(RunError, match="can't be written"):
            result.save(place)
    assert not list((tmp_path / "folder").iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for place in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(NotFoundError, match=str(place)):
            Evaluation.load(place)


def test_document_frequencies_of_other_captions_are_in_the_signature() -> None:
    other = DocumentFrequencies.of([[["a", "dog"]], [["a", "cat"]], *[[["runs"]]] * 7])
    plain, weighed = score_predictions("a", PHOTOS), score_predictions("b", PHOTOS, frequencies=other)
    assert weighed.scores.corpus["CIDEr-D"] != plain.scores.corpus["CIDEr-D"]
    assert plain.signature.differences(weighed.signature) == (f"frequencies: own against {other.digest}",)
    assert f"|frequencies:{other.digest}|" in str(weighed.signature)
    assert "frequencies" not in str(plain.signature)
    # The photos' own, counted beforehand in any order, are what tables have; BLEU weighs nothing.
    own = DocumentFrequencies.of([list(map(ptb_tokenize, photo.references)) for photo in PHOTOS[::-1]])
    assert score_predictions("c", PHOTOS, frequencies=own).signature == plain.signature
    bleu = score_predictions("d", PHOTOS, frequencies=other, metrics=("BLEU-4",)).signature
    assert bleu.frequencies == "own"


def test_a_result_with_other_document_frequencies_comes_back_whole(tmp_path: Path) -> None:
    other = DocumentFrequencies.of([[["a", "dog"]], [["a", "cat"]], [["runs"]]])
    found = score_predictions("a", PHOTOS, frequencies=other)
    found.save(tmp_path / "a.json")
    assert Evaluation.load(tmp_path / "a.json") == found


def test_a_result_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    found = score_predictions("a", PHOTOS)
    found.save(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes())
    assert Evaluation.load(tmp_path / "b.json") == found


def test_scores_of_another_version_are_read_as_far_as_they_are_possible(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    score_predictions("a", PHOTOS).save(path)
    saved = json.loads(path.read_text())
    saved["signature"]["version"] = "0.0.1"
    saved["scores"]["BLEU-4"] = 0.25  # that version may have counted in another way
    path.write_text(json.dumps(saved))
    assert Evaluation.load(path).scores.corpus["BLEU-4"] == 0.25
    for metric, value in (("BLEU-4", 1.1), ("BLEU-4", -0.1), ("CIDEr-D", 10.1), ("ROUGE-L", 0.001)):
        path.write_text(json.dumps({**saved, "scores": {**saved["scores"], metric: value}}))
        with pytest.raises(FormatError, match=f"{metric} isn't that of the captions"):
            Evaluation.load(path)


Change = Callable[[dict[str, Any]], None]


def put(*keys: Any) -> Callable[[Any], Change]:
    """A change of one value of the saved JSON, found by its keys."""

    def with_value(value: Any) -> Change:
        def change(saved: dict[str, Any]) -> None:
            place: Any = saved
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value

        return change

    return with_value


def drop(*keys: Any) -> Change:
    def change(saved: dict[str, Any]) -> None:
        place: Any = saved
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


WRONG: dict[str, Change] = {
    "another format": put("format")("showtell.captioner"),
    "no format": drop("format"),
    "another version": put("format_version")(2),
    "a version that is text": put("format_version")("1"),
    "no photos": put("photos")([]),
    "photos as an object": put("photos")({"a": 1}),
    "photos as text": put("photos")("abc"),
    "photos as a number": put("photos")(5),
    "a photo that is text": put("photos", 0)("dog.jpg"),
    "a photo that is a list": put("photos", 0)([1]),
    "a photo that is null": put("photos", 0)(None),
    "a photo too many": lambda saved: saved["photos"].append({**saved["photos"][0], "id": "other"}),
    "a photo too few": drop("photos", 0),
    "a photo twice": lambda saved: saved["photos"].__setitem__(1, saved["photos"][0]),
    "an unknown field of a photo": put("photos", 0, "colour")("red"),
    "a missing field of a photo": drop("photos", 0, "caption"),
    "a missing id": drop("photos", 0, "id"),
    "an id that is a number": put("photos", 0, "id")(5),
    "a caption that is null": put("photos", 0, "caption")(None),
    "references as text": put("photos", 0, "references")("a dog"),
    "no references": put("photos", 0, "references")([]),
    "references that are numbers": put("photos", 0, "references")([1, 2]),
    "another reference": put("photos", 0, "references", 0)("a dog walks"),
    "another id": put("photos", 0, "id")("dog.jpeg"),
    "an image that is a number": put("photos", 0, "image")(5),
    "a log_prob that is text": put("photos", 0, "log_prob")("low"),
    "a log_prob that is huge": put("photos", 0, "log_prob")(10**400),
    "no scores of a photo": drop("photos", 0, "scores"),
    "scores of a photo as a list": put("photos", 0, "scores")([1]),
    "scores of a photo as null": put("photos", 0, "scores")(None),
    "a missing score of a photo": drop("photos", 0, "scores", "BLEU-4"),
    "a surplus score of a photo": put("photos", 0, "scores", "BLEU-9")(0.5),
    "a score that is text": put("photos", 0, "scores", "BLEU-4")("0.5"),
    "a score that is true": put("photos", 0, "scores", "BLEU-4")(True),
    "a score that is huge": put("photos", 0, "scores", "BLEU-4")(10**400),
    "no scores": drop("scores"),
    "scores as a list": put("scores")(["BLEU-4"]),
    "scores as a number": put("scores")(5),
    "a missing score": drop("scores", "CIDEr-D"),
    "a surplus score": put("scores", "METEOR")(0.5),
    "a corpus score that is null": put("scores", "CIDEr-D")(None),
    "a corpus score that is huge": put("scores", "CIDEr-D")(10**400),
    "a better BLEU-4": put("scores", "BLEU-4")(0.9),
    "a better CIDEr-D": put("scores", "CIDEr-D")(9.9),
    "a better BLEU-4 of a photo": put("photos", 0, "scores", "BLEU-4")(0.9),
    "a better CIDEr-D of a photo": put("photos", 0, "scores", "CIDEr-D")(9.9),
    "another caption": put("photos", 0, "caption")("a dog walks"),
    "better health": put("health", "unique_ratio")(0.01),
    "no signature": drop("signature"),
    "a signature that is text": put("signature")("metrics:BLEU-4"),
    "a signature of other metrics": put("signature", "metrics")(["BLEU-4"]),
    "a signature of more photos": put("signature", "images")(4),
    "a signature of other references": put("signature", "references")("5"),
    "a signature of other data": put("signature", "data")("0" * 12),
    "a name that is a number": put("name")(5),
    "no name": drop("name"),
    "no health": drop("health"),
    "health as text": put("health")("good"),
    "health as a list": put("health")([]),
    "an unknown field of health": put("health", "pulse")(60),
    "a missing field of health": drop("health", "captions"),
    "health of the wrong type": put("health", "captions")("three"),
    "health that is a list": put("health", "mean_length")([1]),
    "health that is true": put("health", "captions")(True),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "scores.json"
    score_predictions("mine", PHOTOS).save(path)
    saved = json.loads(path.read_text())
    WRONG[what](saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(FormatError, match=r"scores\.json"):
        Evaluation.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "5", "{}", "\x00", '{"format": NaN}', "[" * 10**5])
def test_a_foreign_file_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"scores\.json"):
        Evaluation.load(path)


def test_a_file_cut_anywhere_or_with_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    score_predictions("mine", PHOTOS).save(path)
    data = path.read_bytes()
    for end in range(0, len(data.rstrip()), 97):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError, match=r"scores\.json"):
            Evaluation.load(path)
    number = json.dumps(json.loads(data)["scores"]["BLEU-1"]).encode()
    for other in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0.5, 0.5", b'"a": 1'):
        path.write_bytes(data.replace(number, other, 1))
        with pytest.raises(FormatError, match=r"scores\.json"):
            Evaluation.load(path)
    path.write_bytes(data.replace(b'"name"', b'"name": "a", "name"', 1))
    with pytest.raises(FormatError, match="given twice"):
        Evaluation.load(path)
    path.write_bytes(b"\xff\xfe" + data)
    with pytest.raises(FormatError, match="JSON"):
        Evaluation.load(path)


def test_bytes_changed_at_random_give_a_result_or_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    score_predictions("mine", PHOTOS).save(path)
    data = path.read_bytes()
    places = np.random.default_rng(11)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in places.integers(len(data), size=3):
            changed[place] = int(places.integers(32, 127))
        path.write_bytes(bytes(changed))
        try:
            Evaluation.load(path)
        except ShowtellError:
            refused += 1
    assert refused > 200
