"""Predictions and references of any tool: read whole, joined by whatever names the photos, refused in one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from showtell import ArgumentError, DataError, NotFoundError, ShowtellError, read_dataset, score_predictions
from showtell.evaluation.matching import match_predictions
from showtell.evaluation.predictions import Prediction, Predictions, read_predictions
from showtell.evaluation.references import ReferencePhoto, References, choose_split, read_references

CAPTIONS = {"dog.jpg": "a dog runs", "cat.jpg": "a cat, asleep", "sea.jpg": "waves"}
WRITTEN = {"dog.jpg": ("a dog", "a wet dog runs"), "cat.jpg": ("a cat sleeps",), "sea.jpg": ("the sea", "big waves")}
COCO = {
    "images": [{"id": 7, "file_name": "dog.jpg"}, {"id": 8, "file_name": "cat.jpg"}, {"id": 9, "file_name": "sea.jpg"}],
    "annotations": [
        {"id": i, "image_id": {"dog.jpg": 7, "cat.jpg": 8, "sea.jpg": 9}[name], "caption": text}
        for i, (name, text) in enumerate((name, text) for name, texts in WRITTEN.items() for text in texts)
    ],
}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(path: Path, text: str | bytes | Any) -> Path:
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.jsonl", lines(*({"image": k, "caption": v} for k, v in CAPTIONS.items()))),
        ("p.jsonl", "\ufeff" + lines(*({"image_id": k, "prediction": v} for k, v in CAPTIONS.items()))),
        ("p.ndjson", lines(*({"id": k, "text": v} for k, v in CAPTIONS.items())).replace("\n", "\r\n\r\n")),
        ("p.json", lines(*({"file_name": k, "generated": v} for k, v in CAPTIONS.items()))),
        ("results", lines(*({"filename": k, "caption": v, "score": 0.5} for k, v in CAPTIONS.items()))),
        ("p.json", json.dumps([{"image_id": k, "caption": v} for k, v in CAPTIONS.items()], indent=1)),
        ("p.jsonl", json.dumps([{"image_id": k, "caption": v} for k, v in CAPTIONS.items()])),
        ("p.json", json.dumps(CAPTIONS)),
        ("p.json", json.dumps({k: [v] for k, v in CAPTIONS.items()}, indent=2)),
        ("p.json", json.dumps({k: [{"caption": v}] for k, v in CAPTIONS.items()})),
        ("p.csv", 'image,caption\ndog.jpg,a dog runs\ncat.jpg,"a cat, asleep"\nsea.jpg,waves\n'),
        ("p.tsv", "Caption\tImage_ID\na dog runs\tdog.jpg\na cat, asleep\tcat.jpg\nwaves\tsea.jpg\n"),
        ("p.csv", "photo;what it says\ndog.jpg;a dog runs\ncat.jpg;a cat, asleep\nsea.jpg;waves\n"),
        ("p.txt", "image\tgenerated\tnote\ndog.jpg\ta dog runs\t\ncat.jpg\ta cat, asleep\t\nsea.jpg\twaves\tx\n"),
    ],
)
def test_predictions_of_every_layout_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    found = read_predictions(written(tmp_path / name, text))
    assert {row.id: row.caption for row in found.rows} == CAPTIONS
    assert found.file == str(tmp_path / name)


def karpathy() -> dict[str, Any]:
    splits = {"dog.jpg": "test", "cat.jpg": "test", "sea.jpg": "test"}
    images = [
        {
            "filename": name,
            "cocoid": number,
            "split": splits[name],
            "sentences": [{"raw": text, "tokens": text.split(), "sentid": 1} for text in texts],
        }
        for number, (name, texts) in enumerate(WRITTEN.items(), start=7)
    ]
    return {"dataset": "mine", "images": [*images, {"filename": "x.jpg", "split": "restval", "sentences": ["an x"]}]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl", lines(*({"image": k, "captions": v} for k, v in WRITTEN.items()))),
        ("r.jsonl", lines(*({"image": k, "references": v, "caption": "mine"} for k, v in WRITTEN.items()))),
        ("r.jsonl", lines(*({"image_id": k, "id": v, "caption": v} for k, vs in WRITTEN.items() for v in vs))),
        ("r.json", json.dumps([{"image": k, "caption": v} for k, vs in WRITTEN.items() for v in vs])),
        ("r.json", json.dumps(WRITTEN)),
        ("r.json", json.dumps({k: [{"caption": v} for v in vs] for k, vs in WRITTEN.items()})),
        ("r.json", json.dumps(COCO)),
        ("r.json", json.dumps(karpathy())),
        ("r.csv", "image,caption\n" + "".join(f"{k},{v}\n" for k, vs in WRITTEN.items() for v in vs)),
        ("r.csv", "id,caption_1,caption_2\n" + "".join(f"{k},{v[0]},{(*v, '')[1]}\n" for k, v in WRITTEN.items())),
        ("r.csv", "image,caption,split\n" + "".join(f"{k},{v},val\n" for k, vs in WRITTEN.items() for v in vs)),
    ],
)
def test_references_of_every_layout_say_the_same_and_need_no_photos(tmp_path: Path, name: str, text: str) -> None:
    found = read_references(written(tmp_path / name, text))
    assert {photo.id: photo.captions for photo in found.photos} == WRITTEN


def test_references_have_the_ids_that_a_dataset_has_so_that_the_signatures_agree(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("dog.jpg", "cat.jpg", "sea.jpg", "x.jpg"):
        (tmp_path / "sub" / name).write_bytes(b"...")
    layouts = {"k.json": karpathy(), "c.json": json.loads(json.dumps(COCO))}
    layouts["k.json"]["images"][0]["split"] = "val"
    for image in layouts["k.json"]["images"]:
        image["filepath"] = "./sub"
    for image in layouts["c.json"]["images"]:
        image["file_name"] = "sub\\" + image["file_name"]
    for name, value in layouts.items():
        records = read_dataset(written(tmp_path / name, value), images=tmp_path).records
        found = read_references(tmp_path / name, split="all")
        assert {(r.id, r.captions) for r in records} == {(p.id, p.captions) for p in found.photos}


def test_a_folder_or_a_token_file_is_read_as_a_dataset(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"...")
    written(tmp_path / "x.token.txt", "a.jpg#0\tan a\na.jpg#1\tone a\nb.jpg#0\ta b\n")
    written(tmp_path / "x.testImages.txt", "a.jpg\nb.jpg\n")
    for path in (tmp_path / "x.token.txt", tmp_path):
        found = read_references(path, split="test")
        assert [(p.id, p.captions) for p in found.photos] == [("a.jpg", ("an a", "one a")), ("b.jpg", ("a b",))]


def test_rows_of_showtell_keep_their_log_prob_and_an_error_is_a_photo_without_a_caption(tmp_path: Path) -> None:
    rows = [
        {"image": "a/dog.jpg", "caption": "a dog", "log_prob": -3.25, "candidates": [{"caption": "a dog"}]},
        {"image": "a/cat.jpg", "error": "can't be read"},
        {"image": "a/sea.jpg", "caption": None},
        {"image": "a/nil.jpg", "caption": "", "log_prob": "high"},
        {"image": "a/big.jpg", "caption": "big", "log_prob": -(10**400)},
    ]
    found = read_predictions(written(tmp_path / "p.jsonl", lines(*rows)))
    assert [(r.caption, r.log_prob, r.error) for r in found.rows] == [
        ("a dog", -3.25, None),
        (None, None, "can't be read"),
        (None, None, "no caption"),
        ("", None, None),
        ("big", None, None),
    ]
    assert found.rows[1].source == f"{tmp_path / 'p.jsonl'}:2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"image": "a", "caption": "x"}\n{"image": "b", "caption": \n', r"p.jsonl:2: .*isn't valid JSON"),
        ("p.jsonl", '{"image": "a", "caption": "x"}\n["b", "y"]\n', r":2: .*object"),
        ("p.jsonl", '{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}\n', r":2: .*'a' has a caption"),
        ("p.jsonl", '{"image": "a", "caption": "x"}\n{"image": " a ", "caption": "x"}\n', r":2: .*'a' has a caption"),
        ("p.jsonl", '{"image": "a", "image": "b", "caption": "x"}\n', r":1: .*'image' is given twice"),
        ("p.jsonl", '{"image": "a", "caption": NaN}\n', r":1: .*NaN is no JSON number"),
        ("p.jsonl", '{"image": "a", "caption": 1e999}\n', r":1: .*too large"),
        ("p.jsonl", '{"image": "a", "caption": 7}\n', r":1: .*is 7, not a text"),
        ("p.jsonl", '{"image": "a", "caption": ["x", "y"]}\n', r":1: .*2 captions"),
        ("p.jsonl", '{"image": "a", "caption": []}\n', r":1: .*0 captions"),
        ("p.jsonl", '{"image": "a", "caption": "\\ud800"}\n', r":1: .*no character"),
        ("p.jsonl", '{"image": true, "caption": "x"}\n', r":1: .*must be a text or a whole number, not True"),
        ("p.jsonl", '{"image": 1.5, "caption": "x"}\n', r":1: .*not 1.5"),
        ("p.jsonl", '{"image": "  ", "caption": "x"}\n', r":1: .*is empty"),
        ("p.jsonl", '{"caption": "x"}\n', r":1: .*'image', 'image_id'"),
        ("p.jsonl", '{"image": "a", "words": "x"}\n', r":1: .*'prediction'.*holds 'image', 'words'"),
        ("p.jsonl", '{"image": "a", "caption": "x", "generated": "y"}\n', r":1: has 'caption' and 'generated'"),
        ("p.jsonl", '{"image": "a", "caption": "x"}\n{"id": "b", "caption": "y"}\n', r":2: .*under 'image', as the"),
        ("p.jsonl", '{"image": "a", "caption": "x"}\n{"image": "b", "text": "y"}\n', r":2: .*write them alike"),
        ("p.jsonl", b'{"image": "a", "caption": "caf\xe9"}\n', r":1: .*aren't UTF-8"),
        ("p.jsonl", '{"image": "a", "caption": "%s"}\n' % ("x" * 200_000), r":1: .*200,000 characters"),
        ("p.jsonl", "hello\n", "isn't JSON: it begins 'hello"),
        ("p.jsonl", "[" * 100_000, "nests deeper|isn't valid JSON"),
        ("p.json", '{"a": ' * 50_000, "nests deeper|isn't valid JSON"),
        ("p.json", '[{"image": "a", "caption": "x"},', "isn't valid JSON"),
        ("p.json", '[{"image": "a", "caption": "x"}, "b"]', r"entry 2: expected an object"),
        ("p.json", '{"a": "x", "a": "y"}', "'a' is given twice"),
        ("p.json", '{"a": {"b": 1}}', r"photo 'a': .*not a text"),
        ("p.json", '{"": "x"}', r"is empty"),
        ("p.json", b'{"a": "x",\n "b": "\xff"}', r"p.json:2: .*aren't UTF-8"),
        ("p.json", COCO, "holds references"),
        ("p.json", {"format": "showtell.evaluation", "name": "x"}, "saved evaluation, for --compare"),
        ("p.json", "", "is empty"),
        ("p.json", "[]", "holds no captions"),
        ("p.json", "{}", "holds no captions"),
        ("p.json", "3", "isn't JSON"),
        ("p.csv", "image,caption\na.jpg,x\nb.jpg,x,y\n", r"p.csv:3: 3 values for 2 columns"),
        ("p.csv", "a.jpg,x\nb.jpg,y\n", "no line of column names"),
        ("p.csv", "image,caption,prediction\na.jpg,x,y\n", "has 'caption' and 'prediction'; keep"),
        ("p.csv", "one,two,three\na,x,y\n", "the columns are 'one', 'two', 'three'"),
        ("p.csv", "image,caption,caption\na.jpg,x,y\n", "several columns called 'caption'"),
        ("p.csv", "image,caption_1,caption_2\na.jpg,x,y\n", r":2: 'a.jpg' has 2 captions"),
        ("p.csv", b"image,caption\na.jpg,caf\xe9\n", r"p.csv:2: .*aren't UTF-8"),
        ("p.csv", b"\xff\xfei\x00m\x00", "UTF-16"),
        ("p.csv", "", "is empty|holds no captions|isn't understood"),
        ("p.txt", "just words\n", "isn't understood"),
        ("p.bin", b"\0\1\2", "zero bytes"),
    ],
)
def test_what_cannot_be_read_is_said_with_file_and_line(
    tmp_path: Path, name: str, text: str | bytes | Any, message: str
) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        read_predictions(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.jsonl", '{"image": "a", "captions": []}\n', r":1: there is no caption"),
        ("r.jsonl", '{"image": "a", "captions": ["x", 3]}\n', r":1: a caption is 3, not a text"),
        ("r.jsonl", '{"image": "a", "says": "x"}\n', r":1: .*'references'"),
        ("r.jsonl", '{"image": "a", "caption": "x", "split": "exam"}\n', r":1: 'exam' is no split"),
        (
            "r.jsonl",
            lines(*({"image": "a", "caption": "x", "split": s} for s in ("val", "test"))),
            r":2: .*'val' before",
        ),
        ("r.json", {"a": "x", "b": []}, r"photo 'b': there is no caption"),
        ("r.json", {"./a.jpg": "x", "a.jpg": "y"}, r"photo 'a.jpg': is listed twice"),
        ("r.json", {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "x"}]}, r"belongs to no image"),
        ("r.json", {"images": [{"id": 1}, {"id": 1}], "annotations": []}, r"images\[1\]: photo '1' is listed twice"),
        ("r.json", {"images": [{}], "annotations": []}, r"images\[0\]: has no id"),
        ("r.json", {"images": [], "annotations": [7]}, r"annotations\[0\]: has no image_id: 7"),
        ("r.json", {"annotations": [{"image_id": 2, "caption": None}]}, r"annotations\[0\]: a caption is None"),
        ("r.json", {"images": [{"filename": "a.jpg"}]}, r"images\[0\]: has no filename or no sentences"),
        ("r.json", {"images": [{"filename": "a.jpg", "sentences": [{"x": 1}]}]}, r"images\[0\]: a caption is \{'x': 1"),
        ("r.json", {"images": []}, "holds no references"),
        ("r.json", {"format": "showtell.evaluation"}, "holds no references: it is a saved evaluation"),
    ],
)
def test_references_that_cannot_be_used_are_said(tmp_path: Path, name: str, text: Any, message: str) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        read_references(path)


def test_many_problems_are_counted_and_the_first_ten_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", lines(*({"image": i, "caption": i} for i in range(25))))
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert "25 rows" in message
    assert message.count("not a text") == 10
    assert "and 15 more" in message


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (read_predictions, read_references):
        for name in ("missing.json", "x" * 300, "a\0b"):
            with pytest.raises(NotFoundError, match="there is no file"):
                read(tmp_path / name)
    with pytest.raises(DataError, match="no ordinary file"):
        read_predictions(tmp_path)
    with pytest.raises(DataError, match="no ordinary file"):
        read_predictions("/dev/null")
    path = written(tmp_path / "p.json", json.dumps(CAPTIONS))
    monkeypatch.setattr("showtell.evaluation.sources._LIMIT", 20)
    with pytest.raises(DataError, match="at most 20 are read"):
        read_predictions(path)


def test_the_split_is_the_one_asked_for_else_test_else_val(tmp_path: Path) -> None:
    table = "image,caption,split\na.jpg,x,train\nb.jpg,x,dev\nc.jpg,x,{}\n"
    path = written(tmp_path / "r.csv", table.format("test"))
    ids = {split: [p.id for p in read_references(path, split=split).photos] for split in (None, "val", "train", "all")}
    assert ids == {None: ["c.jpg"], "val": ["b.jpg"], "train": ["a.jpg"], "all": ["a.jpg", "b.jpg", "c.jpg"]}
    written(path, table.format("train"))
    found = read_references(path)
    assert (found.split, [p.id for p in found.photos]) == ("val", ["b.jpg"])
    with pytest.raises(ArgumentError, match=r"no photo of .* is in the split 'test'; it has the splits train, val"):
        read_references(path, split="test")
    with pytest.raises(ArgumentError, match="must be one of train, val, test or all"):
        read_references(path, split="exam")
    with pytest.raises(ArgumentError, match="says nothing of splits"):
        read_references(written(tmp_path / "r.json", WRITTEN), split="val")
    assert choose_split(["train"], None, "x") is None


# --- joining --------------------------------------------------------------------------------------------------------


def made(*ids: str) -> Predictions:
    return Predictions("p", tuple(Prediction(i, f"caption of {i}", f"p:{n}") for n, i in enumerate(ids, start=1)))


def people(*ids: str, **names: list[str]) -> References:
    return References(
        "r", tuple(ReferencePhoto(i, (i,), {k: v[n] for k, v in names.items()}) for n, i in enumerate(ids))
    )


@pytest.mark.parametrize(
    ("predictions", "references", "how"),
    [
        (("b.jpg", "a.jpg"), people("a.jpg", "b.jpg"), "id"),
        (("2", "1"), people("a.jpg", "b.jpg", id=["1", "2"]), "the references' 'id'"),
        (("5", "4"), people("a.jpg", "b.jpg", imgid=["1", "2"], cocoid=["4", "5"]), "the references' 'cocoid'"),
        (("/x/b.jpg", "/x/a.jpg"), people("a.jpg", "b.jpg"), "the end of their paths"),
        (("/x/b/1.jpg", "/x/a/1.jpg"), people("a/1.jpg", "b/1.jpg"), "the end of their paths"),
        (("b.jpg", "a.jpg"), people("val/a.jpg", "val/b.jpg"), "file name"),
        (("/here/b.jpg", "/here/a.jpg"), people("/there/a.jpg", "/there/b.jpg"), "file name"),
        (("b", "x/a"), people("a.jpg", "val/b.JPG"), "file name without its ending"),
        (("b.png", "a.1.png"), people("a.1", "b"), "file name without its ending"),
    ],
)
def test_photos_are_matched_by_what_fits_and_keep_the_references_ids(
    predictions: tuple[str, str], references: References, how: str
) -> None:
    matched = match_predictions(made(*predictions), references)
    assert [photo.id for photo in matched.photos] == [photo.id for photo in references.photos]
    assert [photo.caption for photo in matched.photos] == [f"caption of {i}" for i in predictions[::-1]]
    assert matched.notes[0].endswith(f"by {how}")


def test_equal_file_names_in_two_folders_are_never_mixed_up() -> None:
    with pytest.raises(DataError, match="no photo of p is in r"):
        match_predictions(made("x/1.jpg", "y/1.jpg"), people("a/1.jpg", "b/1.jpg"))
    with pytest.raises(DataError, match="no photo of p is in r"):
        match_predictions(made("x/1.jpg", "x/2.jpg"), people("a/1.jpg", "b/1.jpg"))
    with pytest.raises(DataError, match=r"(?s)photos twice.*'y/1.jpg' \(p:2\) and 'x/1.jpg' are both photo '1.jpg'"):
        match_predictions(made("x/1.jpg", "y/1.jpg"), people("1.jpg", "2.jpg"), partial=True)


def test_the_number_of_an_annotation_is_not_the_name_of_its_photo(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "id": 1}, {"image": "a.jpg", "id": 2}, {"image": "b.jpg", "id": 3}]
    path = written(tmp_path / "r.jsonl", lines(*({**row, "caption": "x"} for row in rows)))
    assert [photo.names for photo in read_references(path).photos] == [{}, {"id": "3"}]


def test_everything_that_does_not_fit_is_one_error_with_counts_and_partial_scores_the_rest() -> None:
    references = people("a", "b", "c", "d", "e", "f", "g")
    silent = References("r", (*references.photos, ReferencePhoto("h", ())))
    predictions = made("a", "b", "h", "x", "y")
    failed = Predictions("p", (*predictions.rows, Prediction("c", None, "p:6", error="can't be read")))
    with pytest.raises(DataError) as caught:
        match_predictions(failed, silent)
    message = str(caught.value)
    for part in (
        "4 photos without a prediction: 'd', 'e', 'f', ...",
        "1 prediction without a caption: 'c' (p:6): can't be read",
        "2 predictions for no photo of r: 'x' (p:4), 'y' (p:5)",
        "1 photo without a reference: 'h'",
        "score the 2 that have both with --partial",
    ):
        assert part in message
    matched = match_predictions(failed, silent, partial=True)
    assert [photo.id for photo in matched.photos] == ["a", "b"]
    assert "2 of 8 photos are scored; left out: 4 photos without a prediction" in matched.notes[1]
    whole = match_predictions(made("a", "b"), people("a", "b"))
    assert score_predictions("p", matched.photos).signature == score_predictions("p", whole.photos).signature
    other = match_predictions(made("a", "b", "c"), people("a", "b", "c"))
    assert score_predictions("p", matched.photos).signature.differences(score_predictions("p", other.photos).signature)


def test_nothing_that_fits_shows_both_sides(tmp_path: Path) -> None:
    coco = read_references(written(tmp_path / "coco.json", COCO))
    with pytest.raises(DataError, match=r"for 'x', the references for 'dog.jpg', .*also called id '7'"):
        match_predictions(made("x"), coco, partial=True)
    nobody = Predictions("p", (Prediction("a", None, "p:1", error="broken"),))
    with pytest.raises(DataError, match=r"give one caption for each photo$"):
        match_predictions(nobody, people("a"), partial=True)


def test_photo_files_are_found_inside_the_given_folder_only(tmp_path: Path) -> None:
    inner = tmp_path / "photos" / "val"
    inner.mkdir(parents=True)
    for path in (inner / "a.jpg", inner.parent / "b.jpg", tmp_path / "secret.jpg"):
        path.write_bytes(b"...")
    absolute = str(tmp_path / "secret.jpg")
    predictions = made("val/a.jpg", "b.jpg", "../secret.jpg", absolute)
    matched = match_predictions(predictions, people(*(r.id for r in predictions.rows)), images=inner.parent)
    assert [p.image for p in matched.photos] == [str(inner / "a.jpg"), str(inner.parent / "b.jpg"), None, None]
    assert matched.notes[-1] == f"2 of 4 photos are in {inner.parent}"
    with pytest.raises(NotFoundError, match="folder of photos"):
        match_predictions(made("a"), people("a"), images=tmp_path / "nowhere")


def test_an_empty_reference_is_kept_and_said() -> None:
    references = References("r", (ReferencePhoto("a", ("x", "")),))
    matched = match_predictions(made("a"), references)
    assert matched.photos[0].references == ("x", "")
    assert matched.notes[1] == "1 reference of r without text count as they are"


def test_mutilated_files_end_in_an_error_of_showtell_or_in_captions(tmp_path: Path) -> None:
    dice = random.Random(3)
    sources = [
        lines(*({"image": k, "caption": v} for k, v in CAPTIONS.items())),
        json.dumps(COCO),
        json.dumps(karpathy()),
        json.dumps(WRITTEN),
        "image,caption,split\n" + "".join(f"{k},{v[0]},val\n" for k, v in WRITTEN.items()),
    ]
    junk = (b"", b'"', b"{", b"]", b"\xff", b"null", b"1,", b"\n")
    messages = []
    for number in range(400):
        data = bytearray(sources[number % len(sources)].encode())
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(data))
            data[at : at + dice.choice((0, 1, 1, 9))] = dice.choice(junk)
        path = tmp_path / f"x{dice.choice(('.json', '.jsonl', '.csv', ''))}"
        path.write_bytes(data)
        for read in (read_predictions, read_references):
            try:
                read(path)
            except ShowtellError as error:
                messages.append(str(error))
    assert 200 < len(messages) < 800
    assert [message for message in messages if str(tmp_path) not in message] == []
