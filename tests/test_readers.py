"""Datasets of every layout: what is read, what is refused, and that nothing is dropped in silence."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from showtell.data import Dataset, from_objects, read_dataset
from showtell.errors import ArgumentError, DataError, NotFoundError, ShowtellError
from showtell.image_spec import ImageSpec
from showtell.images import load_image
from showtell.testing import tiny_captioner
from showtell.training import train


def make_photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (i * 20 % 256, 100, 50)).save(folder / name, "PNG")


def captions_of(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {record.id: record.captions for record in dataset.records}


def found(dataset: Dataset) -> list[str]:
    return [str(problem) for problem in dataset.problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    return tmp_path


def write(folder: Path, text: str, name: str = "captions.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# --- tables -----------------------------------------------------------------------------------------------------


def test_rows_of_one_photo_become_one_record_in_the_order_of_the_file(folder: Path) -> None:
    write(folder, "image,caption\nb.jpg,one\na.jpg,two\nb.jpg,three\n")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"b.jpg": ("one", "three"), "a.jpg": ("two",)}
    assert [record.id for record in dataset.records] == ["b.jpg", "a.jpg"]
    assert dataset.records[0].source == "captions.csv:2"
    assert dataset.records[0].image == folder / "b.jpg"
    assert dataset.problems == ()
    assert "photos from column 'image', captions from 'caption'" in dataset.notes[0]


def test_a_quoted_line_end_stays_in_the_caption_and_later_lines_keep_their_numbers(folder: Path) -> None:
    write(folder, 'image,caption\r\na.jpg,"one\r\ntwo, three"\r\nb.jpg,good\r\nmissing.jpg,x\r\n')
    dataset = read_dataset(folder)
    assert captions_of(dataset)["a.jpg"] == ("one\r\ntwo, three",)
    assert found(dataset) == ["captions.csv:5: photo 'missing.jpg' isn't there"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "\ufefffile_name;caption\r\na.jpg;a dog, wet\r\nb.jpg;a cat\r\n"),
        ("captions.tsv", "path\ttext\na.jpg\ta dog, wet\nb.jpg\ta cat\n"),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| a dog, wet\nb.jpg| 0| a cat\n"),
        ("captions.csv", 'a.jpg,"a dog, wet"\nb.jpg,a cat\n'),
        ("captions.csv", 'weight,photo no.,words\n1,a.jpg,"a dog, wet"\n2,b.jpg,a cat\n'),
        ("captions.txt", 'image,caption\na.jpg,"a dog, wet"\nb.jpg,a cat\n'),
        ("rows.jsonl", '{"file_name": "a.jpg", "text": "a dog, wet"}\n\n{"text": "a cat", "file_name": "./b.jpg"}\n'),
        ("data.csv", 'image,caption\n.\\a.jpg,"a dog, wet"\nb.jpg,a cat\n,\n\n'),
    ],
)
def test_tables_of_many_makes_read_the_same(folder: Path, name: str, text: str) -> None:
    write(folder, text, name)
    options = {"caption_column": "words"} if "words" in text else {}
    dataset = read_dataset(folder, **options)  # type: ignore[arg-type]
    assert captions_of(dataset) == {"a.jpg": ("a dog, wet",), "b.jpg": ("a cat",)}
    assert dataset.problems == ()


def test_several_captions_may_be_numbered_columns_or_a_list(folder: Path) -> None:
    write(folder, "image,caption1,caption_2,Caption 3\na.jpg,x,y,z\nb.jpg,u,,\nc.jpg,,,\n")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("x", "y", "z"), "b.jpg": ("u",)}
    assert found(dataset) == ["captions.csv:4: the caption of 'c.jpg' is empty"]
    (folder / "captions.csv").unlink()
    write(folder, '{"image": "a.jpg", "captions": ["x", "y"]}\n{"image": "b.jpg", "captions": ["u", ""]}\n', "d.jsonl")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("x", "y"), "b.jpg": ("u",)}
    assert found(dataset) == ["d.jsonl:2: the caption of 'b.jpg' is empty"]


def test_broken_rows_of_a_jsonl_file_are_listed_with_their_lines(folder: Path) -> None:
    rows = [
        '{"image": "a.jpg", "caption": "fine"}',
        '{"image": "b.jpg", "caption": ',
        '["b.jpg", "x"]',
        '{"image": "b.jpg"}',
        '{"caption": "no photo"}',
        '{"image": 7, "caption": "a number"}',
        '{"image": "b.jpg", "caption": 7}',
        '{"image": "b.jpg", "caption": []}',
        '{"image": "b.jpg", "caption": "\\ud83d"}',
        "[" * 100_000,
        '{"image": "c.jpg", "caption": "fine too"}',
    ]
    write(folder, "\n".join(rows), "rows.jsonl")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("fine",), "c.jpg": ("fine too",)}
    assert sorted(problem.line or 0 for problem in dataset.problems) == list(range(2, 11))
    assert all(problem.file == "rows.jsonl" for problem in dataset.problems)


def test_bad_rows_of_a_csv_are_listed_with_their_lines(folder: Path) -> None:
    write(
        folder,
        'image,caption\na.jpg,fine\nb.jpg,one, two\nb.jpg\nb.jpg,"x"y\nb.jpg,  \n,x\nc.jpg,ok\nb.jpg,"open\nz,z\n',
    )
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("fine",), "c.jpg": ("ok",)}
    assert sorted(problem.line or 0 for problem in dataset.problems) == [3, 4, 5, 6, 7, 9]
    told = {problem.line: problem.message for problem in dataset.problems}
    assert "3 values for 2 columns" in told[3]
    assert "double quotes" in told[3]
    assert "lines 9 to 10 were not read" in told[9]


def test_bytes_that_are_not_utf_8_are_a_problem_of_their_line(folder: Path) -> None:
    (folder / "captions.csv").write_bytes(b"image,caption\na.jpg,fine\nb.jpg,caf\xe9\nc.jpg,caf\xc3\xa9\n")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("fine",), "c.jpg": ("café",)}
    (problem,) = dataset.problems
    assert (problem.line, "UTF-8" in problem.message) == (3, True)
    str(problem).encode()


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_refused_with_what_to_do(folder: Path, coding: str) -> None:
    (folder / "captions.csv").write_bytes("image,caption\na.jpg,x\n".encode(coding))
    with pytest.raises(DataError, match=r"captions.csv.*UTF-8"):
        read_dataset(folder)


def test_a_column_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\nb.jpg,y\n")
    with pytest.raises(
        DataError, match=r"captions.csv:1: there is no column 'Text'; the columns are 'image', 'caption'"
    ):
        read_dataset(folder, caption_column="Text")
    dataset = read_dataset(folder, image_column="image", caption_column="caption")
    assert len(dataset.records) == 2


def test_one_column_cannot_hold_photos_and_captions(folder: Path) -> None:
    table = folder / "one.csv"
    table.write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\n")
    with pytest.raises(DataError, match="both the photos and the captions"):
        read_dataset(table, caption_column="image")


def test_a_caption_longer_than_a_vocabulary_reads_is_a_problem_of_its_line(folder: Path) -> None:
    table = folder / "long.csv"
    table.write_text(f"image,caption\na.jpg,a dog\nb.jpg,a cat\nb.jpg,{'w ' * 50_001}\n")
    (problem,) = read_dataset(table).problems
    assert (problem.line, "at most 100,000" in problem.message) == (4, True)


def test_a_training_run_in_the_folder_of_its_data_is_no_second_table(folder: Path) -> None:
    (folder / "captions.csv").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\n")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert len(read_dataset(folder).records) == 2


def test_columns_that_cannot_be_guessed_are_asked_for(folder: Path) -> None:
    write(folder, "id,first,second\n1,x,y\n")
    with pytest.raises(DataError, match=r"'id', 'first', 'second'; say which it is with image_column"):
        read_dataset(folder)
    write(folder, "image,first,second\na.jpg,x,y\nb.jpg,u,v\n")
    with pytest.raises(DataError, match="caption_column"):
        read_dataset(folder)
    assert captions_of(read_dataset(folder, caption_column="second"))["b.jpg"] == ("v",)


def test_the_column_with_names_of_photos_wins_over_a_mere_number(folder: Path) -> None:
    write(folder, "image,file,caption\n1,a.jpg,x\n2,b.jpg,y\n")
    assert set(captions_of(read_dataset(folder))) == {"a.jpg", "b.jpg"}


def test_swapped_columns_are_a_clear_error_even_with_very_long_captions(folder: Path) -> None:
    write(folder, f"caption,image\na.jpg,{'long ' * 200}\nb.jpg,{'x' * 300}\n")
    with pytest.raises(DataError, match="isn't there"):
        read_dataset(folder, image_column="image", caption_column="caption")


def test_a_web_address_is_told_apart_from_a_missing_photo(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\nb.jpg,x\nhttps://example.org/c.jpg,y\n")
    assert "download" in found(read_dataset(folder))[0]


# --- splits -----------------------------------------------------------------------------------------------------


def test_a_split_column_is_obeyed_and_its_usual_names_are_known(tmp_path: Path) -> None:
    splits = ["train", "Training", "restval", "val", "valid", "validation", "dev", "test", "TESTING ", "tarin", ""]
    names = [f"{i}.jpg" for i in range(len(splits))]
    make_photos(tmp_path, *names)
    write(tmp_path, "image,caption,split\n" + "".join(f"{n},x,{s}\n" for n, s in zip(names, splits, strict=True)))
    dataset = read_dataset(tmp_path)
    assert [record.split for record in dataset.records] == ["train"] * 3 + ["val"] * 4 + ["test"] * 2
    assert [problem.line for problem in dataset.problems] == [11, 12]
    assert "'tarin' is no split" in str(dataset.problems[0])
    assert len(dataset.split("val")) == 4
    with pytest.raises(ArgumentError, match="'dev'"):
        dataset.split("dev")


def test_a_photo_in_two_splits_is_a_problem_and_stays_in_the_first(folder: Path) -> None:
    write(folder, "image,caption,split\na.jpg,x,train\nb.jpg,x,val\na.jpg,y,val\na.jpg,z,train\n")
    dataset = read_dataset(folder)
    assert captions_of(dataset)["a.jpg"] == ("x", "z")
    assert found(dataset) == ["captions.csv:4: photo 'a.jpg' is in 'val' here and in 'train' in captions.csv:2"]


def test_without_splits_about_a_tenth_of_the_photos_is_held_out_whole_and_said(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(400)]
    tmp_path.joinpath("images").mkdir()
    for name in names:
        (tmp_path / "images" / name).write_bytes(b"x")
    rows = [f"{name},{number}\n" for number in range(3) for name in names]
    write(tmp_path, "image,caption\n" + "".join(rows))
    dataset = read_dataset(tmp_path)
    val = dataset.split("val")
    assert 20 <= len(val) <= 60
    assert len(dataset.split("train")) + len(val) == 400
    assert all(record.captions == ("0", "1", "2") for record in dataset.records)
    assert any(f"{len(val)} of 400 photos" in note and "held out" in note for note in dataset.notes)
    other = read_dataset(tmp_path, seed=1).split("val")
    assert {r.id for r in other} != {r.id for r in val}

    rows += [f"more{i}.jpg,new\n" for i in range(100)]
    for i in range(100):
        (tmp_path / "images" / f"more{i}.jpg").write_bytes(b"x")
    write(tmp_path, "image,caption\n" + "".join(reversed(rows)))
    grown = {record.id: record.split for record in read_dataset(tmp_path).records}
    assert all(grown[record.id] == record.split for record in dataset.records)


@pytest.mark.parametrize("seed", range(20))
def test_two_photos_are_always_one_to_train_on_and_one_to_validate_on(tmp_path: Path, seed: int) -> None:
    make_photos(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, "image,caption\na.jpg,x\nb.jpg,y\n")
    assert sorted(record.split for record in read_dataset(tmp_path, seed=seed).records) == ["train", "val"]


def test_a_single_photo_is_enough_to_score_and_too_few_to_train(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\n")
    dataset = read_dataset(folder)
    assert [record.split for record in dataset.records] == ["train"]
    with pytest.raises(DataError, match="1 photos to train on and 0 to validate on"):
        train(dataset, folder / "run", init=tiny_captioner(), say=lambda text: None)


def test_splits_without_val_have_it_held_out_from_train_only(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(6)]
    make_photos(tmp_path, *names)
    write(tmp_path, "image,caption,split\n" + "".join(f"{n},x,{'train' if n < '4' else 'test'}\n" for n in names))
    dataset = read_dataset(tmp_path)
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [3, 1, 2]
    assert any("no photo is marked val" in note for note in dataset.notes)


# --- which file, which photos -----------------------------------------------------------------------------------


def test_several_files_of_captions_are_refused_by_name(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\nb.jpg,y\n")
    write(folder, '{"image": "a.jpg", "caption": "x"}\n', "more.jsonl")
    with pytest.raises(DataError, match=r"captions.csv, more.jsonl; pass the path of the one you mean"):
        read_dataset(folder)
    assert len(read_dataset(folder / "captions.csv").records) == 2


def test_files_named_after_splits_are_read_together(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\nb.jpg,y\n", "train.csv")
    write(folder, "image,caption\nc.jpg,z\nb.jpg,leak\n", "val.csv")
    dataset = read_dataset(folder)
    assert {record.id: record.split for record in dataset.records} == {
        "a.jpg": "train",
        "b.jpg": "train",
        "c.jpg": "val",
    }
    assert "val.csv:3" in found(dataset)[0]


def test_no_such_path_and_a_folder_without_captions_show_an_accepted_layout(folder: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere doesn't exist(?s:.*)image,caption"):
        read_dataset(folder / "nowhere")
    with pytest.raises(DataError, match=r"no file of captions(?s:.*)photo1.txt beside photo1.jpg"):
        read_dataset(folder)
    with pytest.raises(NotFoundError, match="folder of photos"):
        read_dataset(folder, images=folder / "nowhere")
    with pytest.raises(DataError):
        read_dataset(folder / "a.jpg")
    write(folder, "Dear diary\n", "notes.txt")
    with pytest.raises(DataError, match=r"begins 'Dear diary'"):
        read_dataset(folder / "notes.txt")
    write(folder, "", "empty.csv")
    with pytest.raises(DataError, match="no photo with a caption"):
        read_dataset(folder / "empty.csv")


def test_when_no_photo_is_found_the_error_says_where_it_looked(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    data = tmp_path / "data"
    data.mkdir()
    write(data, "image,caption\na.jpg,x\nb.jpg,y\n")
    with pytest.raises(
        DataError, match=r"captions.csv:2: photo 'a.jpg' isn't there(?s:.*)looked for in .*data.*images"
    ):
        read_dataset(data)
    assert len(read_dataset(data, images=tmp_path / "photos").records) == 2
    assert len(read_dataset(data, images=tmp_path).records) == 2


def test_photos_may_lie_in_images_or_in_any_subfolder_but_one_choice_holds_for_all(tmp_path: Path) -> None:
    make_photos(tmp_path / "odd", "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path, "image,caption\na.jpg,x\nb.jpg,y\n")
    dataset = read_dataset(tmp_path)
    assert dataset.records[0].image == tmp_path / "odd" / "a.jpg"
    assert any("odd" in note for note in dataset.notes)
    make_photos(tmp_path / "images", "b.jpg", "c.jpg")
    write(tmp_path, "image,caption\na.jpg,x\nb.jpg,y\nc.jpg,y\n")
    assert found(read_dataset(tmp_path)) == ["captions.csv:2: photo 'a.jpg' isn't there"]


def test_photos_may_be_named_by_whole_paths(tmp_path: Path) -> None:
    make_photos(tmp_path / "far", "a.jpg", "b.jpg")
    data = tmp_path / "data"
    data.mkdir()
    write(data, f"image,caption\n{tmp_path}/far/a.jpg,x\n../far/b.jpg,y\n")
    assert len(read_dataset(data).records) == 2


def test_captions_beside_photos_are_read_one_a_line(folder: Path) -> None:
    write(folder, "\ufeffa dog\r\n\r\n  a wet dog  \r\n", "a.txt")
    write(folder, "a cat", "b.txt")
    write(folder, "Hello", "README.txt")
    dataset = read_dataset(folder)
    assert captions_of(dataset) == {"a.jpg": ("a dog", "a wet dog"), "b.jpg": ("a cat",)}
    assert found(dataset) == ["c.jpg: no caption: there is no c.txt"]
    assert any("README.txt" in note for note in dataset.notes)
    make_photos(folder, "a.png")
    write(folder, "\n", "c.txt")
    dataset = read_dataset(folder)
    assert sorted(found(dataset)) == [
        "a.png: a.txt belongs to a.jpg already; give each photo a name of its own",
        "c.txt: no caption for c.jpg",
    ]
    with pytest.raises(ArgumentError, match="columns"):
        read_dataset(folder, caption_column="text")


# --- the public datasets ----------------------------------------------------------------------------------------


def karpathy(*entries: tuple[Any, Any, Sequence[Any]], **more: Any) -> str:
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": c, "tokens": str(c).split()} for c in captions],
            **more,
        }
        for name, split, captions in entries
    ]
    return json.dumps({"images": images, "dataset": "x"})


def test_karpathys_layout_is_read_and_restval_counts_as_train(tmp_path: Path) -> None:
    make_photos(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    text = karpathy(
        ("a.jpg", "restval", ["x", "y"]),
        ("b.jpg", "val", ["z"]),
        ("gone.jpg", "train", ["z"]),
        ("a.jpg", "restval", ["again"]),
        ("c.jpg", "test", ["", "w"]),
        (None, "test", ["w"]),
    )
    write(tmp_path, text, "dataset_mine.json")
    dataset = read_dataset(tmp_path)
    assert [(r.id, r.split, r.captions) for r in dataset.records] == [
        ("a.jpg", "train", ("x", "y")),
        ("b.jpg", "val", ("z",)),
        ("c.jpg", "test", ("w",)),
    ]
    assert len(dataset.problems) == 4
    assert any("'a.jpg' is listed twice" in line for line in found(dataset))
    moved = tmp_path / "else.json"
    (tmp_path / "dataset_mine.json").rename(moved)
    assert len(read_dataset(moved, images=tmp_path / "images").records) == 3


def test_karpathys_filepath_leads_to_cocos_folders(tmp_path: Path) -> None:
    make_photos(tmp_path / "val2014", "a.jpg")
    make_photos(tmp_path / "train2014", "a.jpg", "b.jpg")
    one = json.loads(karpathy(("a.jpg", "val", ["x"]), filepath="val2014"))
    two = json.loads(karpathy(("a.jpg", "train", ["x"]), ("b.jpg", "train", ["y"]), filepath="train2014"))
    write(tmp_path, json.dumps({"images": one["images"] + two["images"]}), "dataset_coco.json")
    dataset = read_dataset(tmp_path)
    assert [r.id for r in dataset.records] == ["val2014/a.jpg", "train2014/a.jpg", "train2014/b.jpg"]
    assert dataset.records[1].image == tmp_path / "train2014" / "a.jpg"
    assert dataset.problems == ()


def coco(names: dict[int, str], captions: Sequence[tuple[int, Any]]) -> str:
    return json.dumps(
        {
            "images": [{"id": key, "file_name": name} for key, name in names.items()],
            "annotations": [{"id": n, "image_id": key, "caption": c} for n, (key, c) in enumerate(captions)],
        }
    )


def test_cocos_annotations_of_both_splits_are_read_together(tmp_path: Path) -> None:
    make_photos(tmp_path / "train2017", "1.jpg", "2.jpg")
    make_photos(tmp_path / "val2017", "3.jpg")
    notes = tmp_path / "annotations"
    notes.mkdir()
    captions = [(1, "x"), (2, "y\n"), (1, "z"), (9, "nobody's"), (2, None)]
    write(notes, coco({1: "1.jpg", 2: "2.jpg", 4: "none.jpg"}, captions), "captions_train2017.json")
    write(notes, coco({3: "3.jpg"}, [(3, "w")]), "captions_val2017.json")
    write(notes, "{}", "instances_val2017.json")
    dataset = read_dataset(tmp_path)
    assert captions_of(dataset) == {"1.jpg": ("x", "z"), "2.jpg": ("y",), "3.jpg": ("w",)}
    assert [record.split for record in dataset.records] == ["train", "train", "val"]
    assert len(dataset.problems) == 3
    alone = read_dataset(notes / "captions_train2017.json", images=tmp_path / "train2017")
    assert sorted(record.split for record in alone.records) == ["train", "val"]


def test_flickr8ks_token_file_is_read_with_its_lists_of_splits(tmp_path: Path) -> None:
    make_photos(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    tokens = (
        "a.jpg#0\tone .\na.jpg#1\ttwo .\nb.jpg#0\tthree\nc.jpg#0\tfour\nd.jpg#0\tfive\nbroken line\nx.jpg.1#0\tsix\n"
    )
    write(text, tokens, "Flickr8k.token.txt")
    write(text, tokens, "Flickr8k.lemma.token.txt")
    dataset = read_dataset(tmp_path)
    assert len(dataset.split("val")) == 1
    write(text, "a.jpg\n", "Flickr_8k.trainImages.txt")
    write(text, "b.jpg\n", "Flickr_8k.devImages.txt")
    write(text, "c.jpg\n", "Flickr_8k.testImages.txt")
    dataset = read_dataset(tmp_path)
    assert [(r.id, r.split) for r in dataset.records] == [
        ("a.jpg", "train"),
        ("b.jpg", "val"),
        ("c.jpg", "test"),
        ("d.jpg", "train"),
    ]
    assert dataset.records[0].captions == ("one .", "two .")
    assert [problem.line for problem in dataset.problems] == [6, 7]
    assert any("2 photos are in no list" in note for note in dataset.notes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": {}}', '{"images": [', "[" * 100_000, "\xff", '"x"'])
def test_json_of_another_kind_is_refused_by_name(tmp_path: Path, text: str) -> None:
    write(tmp_path, text, "dataset_x.json")
    with pytest.raises(DataError, match=r"dataset_x\.json"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("images", ["[1]", "[{}]", '[{"filename": "a.jpg"}]', '[{"filename": [], "sentences": [1]}]'])
@pytest.mark.parametrize("annotations", ["", ', "annotations": [1, {"image_id": []}]'])
def test_json_of_the_right_kind_with_wrong_entries_lists_them(tmp_path: Path, images: str, annotations: str) -> None:
    write(tmp_path, f'{{"images": {images}{annotations}}}', "dataset_x.json")
    with pytest.raises(DataError, match="no photo with a caption"):
        read_dataset(tmp_path)


def test_flickr8k_itself_is_read_whole(shared: Path) -> None:
    dataset = read_dataset(shared / "flickr8k")
    assert len(dataset.split("train")) == 6091
    assert len(dataset.split("val")) == 1000
    assert len(dataset.records) == 7091
    assert dataset.problems == ()
    assert dataset.summary().splitlines()[0] == "7,091 photos, 35,455 captions (5 a photo)"
    assert dataset.records[0].image == shared / "flickr8k" / "images" / "1000268201_693b08cb0e.jpg"
    assert dataset.records[0].captions[1] == "A girl going into a wooden building ."


# --- the dataset itself -----------------------------------------------------------------------------------------


def test_the_fingerprint_stays_when_the_folder_moves_and_changes_with_anything_else(folder: Path) -> None:
    text = "image,caption,split\na.jpg,x,train\nb.jpg,y,val\n"
    write(folder, text)
    first = read_dataset(folder).fingerprint()
    with tempfile.TemporaryDirectory() as place:
        moved = Path(place) / "copy"
        shutil.copytree(folder, moved)
        assert read_dataset(moved).fingerprint() == first
        seen = {first}
        for changed in (text.replace("x", "z"), text.replace("val", "test") + "c.jpg,q,val\n", text + "b.jpg,,val\n"):
            write(moved, changed)
            seen.add(read_dataset(moved).fingerprint())
        assert len(seen) == 3, "the row without a caption changes nothing"
        write(moved, text)
        with (moved / "a.jpg").open("ab") as file:
            file.write(b"!")
        assert read_dataset(moved).fingerprint() not in seen


def test_check_images_opens_every_photo_and_names_file_and_line_of_the_bad_ones(folder: Path) -> None:
    write(folder, "image,caption\na.jpg,x\nb.jpg,y\nc.jpg,z\n")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-30])
    (folder / "c.jpg").write_bytes(b"not a photo")
    dataset = read_dataset(folder)
    problems = dataset.check_images(show=False)
    assert [(p.file, p.line) for p in problems] == [("captions.csv", 3), ("captions.csv", 4)]
    assert "b.jpg" in problems[0].message

    def refuse(photo: Any) -> None:
        raise ShowtellError(f"no {photo.name}")

    assert [p.message for p in dataset.check_images(verify=refuse)] == ["no a.jpg", "no b.jpg", "no c.jpg"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None, max_examples=60)
def test_whatever_a_csv_writer_writes_is_read_back_or_listed(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in "abc":
            (folder / f"{name}.jpg").write_bytes(b"x")
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(["image", "caption"])
        begins = []
        for name, caption in rows:
            begins.append(1 + len(io.StringIO(buffer.getvalue(), newline="").readlines()))
            writer.writerow([f"{name}.jpg", caption])
        (folder / "captions.csv").write_bytes(buffer.getvalue().encode())
        expected: dict[str, list[str]] = {}

        def has_word(text: str) -> bool:
            """A letter, mark, digit or symbol."""
            return any(unicodedata.category(character)[0] in "LMNS" for character in text)

        for name, caption in rows:
            if has_word(caption):
                expected.setdefault(f"{name}.jpg", []).append(caption.strip())
        if not expected:
            with pytest.raises(DataError):
                read_dataset(folder)
            return
        dataset = read_dataset(folder)
        assert captions_of(dataset) == {name: tuple(captions) for name, captions in expected.items()}
        blank = [line for line, (_, caption) in zip(begins, rows, strict=True) if not has_word(caption)]
        assert [problem.line for problem in dataset.problems] == blank


# --- objects ----------------------------------------------------------------------------------------------------


class FakeHuggingFace:
    """Rows that decode their photo when the row is asked for, as Hugging Face's do."""

    _fingerprint = "f00d"

    def __init__(self, rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
        self.rows, self.columns, self.decoded = rows, columns, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {k: v for k, v in self.rows[i].items() if self.columns is None or k in self.columns}
        self.decoded += "image" in row
        return {k: v() if callable(v) else v for k, v in row.items()}

    def select_columns(self, columns: list[str]) -> FakeHuggingFace:
        return FakeHuggingFace(self.rows, columns)


def grey(shade: int) -> Image.Image:
    return Image.new("RGB", (6, 6), (shade,) * 3)


def test_objects_are_read_without_decoding_their_photos(folder: Path) -> None:
    rows = [{"image": lambda i=i: grey(i), "sentences": [f"{i}", "x"]} for i in range(30)]
    data = FakeHuggingFace(rows)
    dataset = from_objects(data)
    assert data.decoded == 1
    assert [record.captions for record in dataset.records] == [(f"{i}", "x") for i in range(30)]
    assert load_image(dataset.records[7].photo(), ImageSpec(4, 4))[0, 0, 0].item() == pytest.approx(7 / 255)
    assert dataset.fingerprint() == from_objects(data).fingerprint()
    assert data.decoded == 3


def test_objects_may_hold_paths_bytes_or_dictionaries_and_rows_may_share_a_photo(folder: Path) -> None:
    data = (folder / "a.jpg").read_bytes()
    path = str(folder / "b.jpg")
    assert captions_of(
        from_objects(
            [
                {"image": path, "caption": "x"},
                {"image": str(folder / "a.jpg"), "caption": "w"},
                {"image": path, "caption": "y"},
            ]
        )
    )[path] == ("x", "y")
    rows = [{"image": {"bytes": data, "path": None}, "image_id": i // 2, "caption": f"{i}"} for i in range(4)]
    dataset = from_objects(rows)
    assert captions_of(dataset) == {"0": ("0", "1"), "1": ("2", "3")}
    assert dataset.records[0].photo() == data
    assert from_objects([{"image": {"bytes": None, "path": path}, "caption": "x"}] * 2).records[0].photo() == path


def test_bad_rows_of_objects_are_listed(folder: Path) -> None:
    path = str(folder / "b.jpg")
    rows = [
        {"image": path, "caption": "x"},
        {"image": "nowhere.jpg", "caption": "x"},
        {"image": path, "caption": None},
        {"image": str(folder / "a.jpg"), "caption": "x"},
        None,
    ]
    assert sorted(problem.line or 0 for problem in from_objects(rows).problems) == [2, 3, 5]
    late = from_objects([{"image": grey(1), "caption": "x"}, {"image": None, "caption": "y"}])
    (problem,) = late.check_images()
    assert "row 1" in problem.message


def test_a_mapping_of_splits_is_read_whole() -> None:
    parts = {"train": [{"image": grey(1), "caption": "x"}], "validation": [{"image": grey(2), "caption": "y"}]}
    assert [record.split for record in from_objects(parts).records] == ["train", "val"]
    with pytest.raises(DataError, match="'extra' is no split"):
        from_objects({**parts, "extra": []})


class Table:
    """Columns by name, as pandas has them."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, name: Any) -> Any:
        raise KeyError(name)


@pytest.mark.parametrize(
    "data", [[], [1], 7, [{"a": 1}], [{"image": 1, "b": 2, "c": 3}], {}, [{0: 1, 1: "a"}], Table()]
)
def test_objects_of_another_shape_are_refused_with_an_example(data: Any) -> None:
    with pytest.raises(DataError, match="expected rows such as"):
        from_objects(data)


def test_other_photos_in_a_list_have_another_fingerprint() -> None:
    one = [{"image": grey(1), "caption": "x"}, {"image": np.zeros((5, 5, 3), np.uint8), "caption": "y"}]
    two = [{"image": grey(2), "caption": "x"}, one[1]]
    assert from_objects(one).fingerprint() == from_objects(one).fingerprint() != from_objects(two).fingerprint()
