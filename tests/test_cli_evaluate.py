"""`showtell evaluate`, called as a user calls it: the numbers, what they are compared with, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import showtell.cli.evaluate as command
from showtell import Captioner, Evaluation, MissingPackageError, evaluate, read_dataset
from showtell.cli import build_parser, main
from showtell.evaluation.compare import compare, confidence
from showtell.metrics import METRICS, score_captions
from showtell.testing import tiny_captioner

WRITTEN = {
    "a/dog.jpg": ["a dog runs over wet sand", "the brown dog is running"],
    "a/cat.jpg": ["a black cat sleeps", "a cat, asleep on a chair"],
    "b/sea.jpg": ["waves at the beach", "the sea and some clouds"],
    "b/man.jpg": ["a man in a red shirt reads", "somebody reads a book"],
}
GOOD = {
    "a/dog.jpg": "a dog runs",
    "a/cat.jpg": "a cat sleeps on a chair",
    "b/sea.jpg": "the sea",
    "b/man.jpg": "a book",
}
DULL = dict.fromkeys(WRITTEN, "a man")


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: references, and predictions of two tools."""
    (tmp_path / "r.json").write_text(json.dumps(WRITTEN))
    (tmp_path / "good.jsonl").write_text(lines(*({"image": f"/photos/{k}", "caption": v} for k, v in GOOD.items())))
    (tmp_path / "dull.csv").write_text("image,prediction\n" + "".join(f"{k},{v}\n" for k, v in DULL.items()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def album(tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight photos: four to train, two to validate, two to test; and two captioners."""
    rows = ["image,caption,split"]
    for number in range(8):
        shutil.copy(photos[number % len(photos)], tmp_path / f"{number}.jpg")
        split = "train" if number < 4 else "val" if number < 6 else "test"
        rows += [f"{number}.jpg,a picture of {word} {number},{split}" for word in ("number", "the number")]
    (tmp_path / "data.csv").write_text("\n".join(rows) + "\n")
    tiny_captioner(seed=0).save_pretrained(tmp_path / "model")
    tiny_captioner(seed=1).save_pretrained(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(text: str) -> dict[str, list[str]]:
    """The rows of a printed table: metric to what stands behind it."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()[:1] and line[0] != " "}


def as_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (row,) = capsys.readouterr().out.splitlines()
    value: dict[str, Any] = json.loads(row)
    return value


P_R = ["evaluate", "--predictions", "good.jsonl", "--references", "r.json"]
M_D = ["evaluate", "--model", "model", "--data", "data.csv"]


# --- predictions ----------------------------------------------------------------------------------------------------


def test_the_numbers_printed_for_predictions_are_those_of_score_captions(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = score_captions([GOOD[k] for k in WRITTEN], list(WRITTEN.values())).corpus
    assert main([*P_R, "--format", "jsonl"]) == 0
    found = as_json(capsys)
    assert found["scores"] == dict(expected)
    assert found["name"] == "good.jsonl"
    assert found["signature"]["search"] == "given"
    assert found["signature"]["text"].startswith(
        "metrics:BLEU-1..4+ROUGE-L+CIDEr-D+CIDEr|tokenizer:ptb-1|references:2|"
    )
    assert found["health"]["captions"] == 4
    assert all(low <= expected[metric] * 2 and low <= high for metric, (low, high) in found["confidence"].items())
    assert main(P_R) == 0
    heard = capsys.readouterr()
    table = shown(heard.out)
    assert {metric: table[metric][0] for metric in METRICS} == {m: f"{v:.6f}" for m, v in expected.items()}
    assert found["signature"]["text"] in heard.out
    assert "4 photos of good.jsonl is matched" not in heard.out
    assert "by the end of their paths" in heard.err


def test_coco_results_are_scored_against_coco_annotations(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = {name: 100 + i for i, name in enumerate(WRITTEN)}
    annotations = {
        "images": [{"id": i, "file_name": name} for name, i in number.items()],
        "annotations": [
            {"image_id": number[name], "id": i, "caption": text}
            for i, (name, text) in enumerate((name, text) for name, texts in WRITTEN.items() for text in texts)
        ],
    }
    (files / "coco.json").write_text(json.dumps(annotations))
    (files / "results.json").write_text(json.dumps([{"image_id": number[k], "caption": v} for k, v in GOOD.items()]))
    assert main([*P_R, "--format", "jsonl"]) == 0
    plain = as_json(capsys)
    assert main(["evaluate", "--predictions", "results.json", "--references", "coco.json", "--format", "jsonl"]) == 0
    coco = as_json(capsys)
    assert coco["scores"] == plain["scores"]
    assert coco["signature"] == plain["signature"]


def test_predictions_that_do_not_fit_stop_everything_unless_partial(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (files / "good.jsonl").open("a") as file:
        file.write(lines({"image": "/photos/x.jpg", "caption": "an x"}))
    (files / "r.json").write_text(json.dumps({**WRITTEN, "c/new.jpg": ["a new one"]}))
    assert main([*P_R, "--output", "out.json"]) == 2
    heard = capsys.readouterr()
    assert "1 photo without a prediction: 'c/new.jpg'" in heard.err
    assert "'/photos/x.jpg' (good.jsonl:5)" in heard.err
    assert heard.out == ""
    assert not (files / "out.json").exists()
    assert main([*P_R, "--partial", "--output", "out.json"]) == 0
    assert "4 of 5 photos are scored" in capsys.readouterr().err
    assert len(Evaluation.load(files / "out.json").photos) == 4


def test_metrics_are_named_in_any_order_and_case_and_make_the_same_signature(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for names in ("CIDEr-D,BLEU-4", "bleu-4, cider-d"):
        assert main([*P_R, "--metrics", names, "--format", "jsonl"]) == 0
        found = as_json(capsys)
        assert list(found["scores"]) == ["BLEU-4", "CIDEr-D"]
        texts.append(found["signature"]["text"])
    assert texts[0] == texts[1]
    assert main([*P_R, "--metrics", "BLEU-5"]) == 2
    assert "'BLEU-5' is none of BLEU-1, BLEU-2" in capsys.readouterr().err
    assert main([*P_R, "--metrics", ""]) == 2


def test_one_photo_has_scores_and_no_intervals(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "one.json").write_text(json.dumps({"x": "a dog"}))
    assert main(["evaluate", "--predictions", "one.json", "--references", "one.json", "--format", "jsonl"]) == 0
    found = as_json(capsys)
    assert found["scores"]["CIDEr-D"] == 0
    assert set(found["confidence"].values()) == {None}
    assert main(["evaluate", "--predictions", "one.json", "--references", "one.json"]) == 0
    heard = capsys.readouterr()
    assert shown(heard.out)["CIDEr-D"] == ["0.000000"]
    assert "with one photo CIDEr-D and CIDEr are 0 whatever the caption" in heard.err


def test_a_result_is_saved_and_compared_with_what_is_saved_or_a_file_of_predictions(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--predictions", "dull.csv", "--references", "r.json", "--output", "dull.json"]) == 0
    assert "the result is in dull.json" in capsys.readouterr().err
    dull = Evaluation.load(files / "dull.json")
    assert dull.captions == ("a man",) * 4
    found = {}
    for rival in ("dull.json", "dull.csv"):
        assert main([*P_R, "--compare", rival, "--format", "jsonl"]) == 0
        found[rival] = as_json(capsys)["comparison"]
        assert found[rival]["with"]["name"] == "dull.csv"
        assert found[rival]["with"]["scores"] == dict(dull.scores.corpus)
    assert found["dull.json"] == found["dull.csv"]
    assert main([*P_R, "--output", "good.json"]) == 0
    expected = compare(dull, Evaluation.load(files / "good.json"))
    for one in expected.differences:
        assert one.interval is not None
        assert found["dull.json"]["differences"][one.metric] == {
            "a": one.a,
            "b": one.b,
            "difference": one.difference,
            "interval": [one.interval.low, one.interval.high],
            "better": one.better,
            "significant": one.significant,
        }
    capsys.readouterr()
    assert main([*P_R, "--compare", "dull.json"]) == 0
    text = capsys.readouterr().out
    table = shown(text)
    for one in expected.differences:
        assert table[one.metric][:3] == [f"{one.a:.6f}", f"{one.b:.6f}", f"{one.difference:+.6f}"]
        assert (table[one.metric][-1] == "*") == one.significant
    assert any(one.significant for one in expected.differences)
    assert "difference: good.jsonl minus dull.csv" in text
    assert text.count("|tokenizer:") == 2


def test_results_that_were_not_made_alike_are_compared_with_force_only(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*P_R, "--metrics", "BLEU-4,CIDEr-D", "--output", "two.json"]) == 0
    capsys.readouterr()
    assert main([*P_R, "--metrics", "BLEU-4", "--compare", "two.json"]) == 2
    heard = capsys.readouterr()
    assert "metrics: BLEU-4+CIDEr-D against BLEU-4" in heard.err
    assert "--force" in heard.err
    assert heard.out == ""
    assert main([*P_R, "--metrics", "BLEU-4", "--compare", "two.json", "--force"]) == 0
    text = capsys.readouterr().out
    assert "compared all the same (--force); this differs\n  metrics: BLEU-4+CIDEr-D against BLEU-4" in text
    assert shown(text)["BLEU-4"][2] == "+0.000000"


def test_a_report_is_one_html_file_with_the_photos_that_were_found(files: Path, photos: list[Path]) -> None:
    (files / "pictures" / "a").mkdir(parents=True)
    shutil.copy(photos[0], files / "pictures" / "a" / "dog.jpg")
    assert main([*P_R, "--report", "out.html"]) == 0
    without = (files / "out.html").read_text(encoding="utf-8")
    assert main([*P_R, "--report", "out.html", "--images", "pictures", "--compare", "dull.csv"]) == 0
    text = (files / "out.html").read_text(encoding="utf-8")
    assert without.startswith("<!doctype html>")
    assert "good.jsonl" in without
    assert "dull.csv" not in without
    assert "dull.csv" in text
    assert "data:image/" in text
    assert "data:image/" not in without


# --- a captioner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "scored"), [((), "test"), (("--split", "val"), "val"), (("--split", "all"), None)])
def test_a_captioner_is_scored_on_the_split_that_is_said(
    asked: tuple[str, ...], scored: str | None, album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*M_D, *asked, "--search", "beam:2", "--batch-size", "3", "--format", "jsonl"]) == 0
    heard = capsys.readouterr()
    found = json.loads(heard.out)
    dataset = read_dataset(album / "data.csv")
    records = dataset.split(scored) if scored else dataset.records
    training = [caption for record in dataset.split("train") for caption in record.captions]
    captioner = Captioner.from_pretrained(album / "model")
    expected = evaluate(captioner, records, search="beam:2", training=training)
    assert found["scores"] == pytest.approx(dict(expected.scores.corpus), abs=1e-12)
    assert found["signature"]["text"] == str(expected.signature)
    assert found["signature"]["search"] == "beam:size=2,max_length=20,length_penalty=0.0"
    assert found["name"] == "model"
    assert found["health"]["novelty"] is not None
    assert f"{len(records)} photos" + (f" of the split {scored}" if scored else "") in heard.err


def test_predictions_of_showtell_score_as_the_captioner_does(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*M_D, "--split", "all", "--search", "greedy", "--format", "jsonl"]) == 0
    direct = as_json(capsys)
    assert main(["caption", "--model", "model", "--search", "greedy", str(album), "--output", "rows.jsonl"]) == 0
    rows = ["evaluate", "--predictions", "rows.jsonl", "--references", "data.csv", "--split", "all"]
    assert main([*rows, "--name", "mine", "--output", "mine.json", "--images", "."]) == 0
    capsys.readouterr()
    saved = Evaluation.load(album / "mine.json")
    assert saved.name == "mine"
    assert dict(saved.scores.corpus) == pytest.approx(direct["scores"], abs=1e-12)
    assert saved.signature.data == direct["signature"]["data"]
    assert [photo.image for photo in saved.photos] == [f"{n}.jpg" for n in range(8)]
    assert all(photo.log_prob is not None and photo.log_prob < 0 for photo in saved.photos)


def test_a_captioner_is_compared_with_another_or_a_result_and_unlike_ones_are_refused_before_the_work(
    album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*M_D, "--compare", "other", "--format", "jsonl"]) == 0
    found = as_json(capsys)
    assert found["comparison"]["with"]["name"] == "other"
    assert main([*M_D[:2], "other", *M_D[3:], "--output", "other.json"]) == 0
    assert main([*M_D, "--compare", "./other.json", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["comparison"] == found["comparison"]
    monkeypatch.setattr(command, "evaluate", never)
    for changed, difference in (
        (["--search", "beam:2"], "search: greedy:max_length=20 against beam:size=2"),
        (["--split", "val"], "data: "),
        (["--metrics", "BLEU-4"], " against BLEU-4"),
    ):
        assert main([*M_D, *changed, "--compare", "other.json"]) == 2
        assert difference in capsys.readouterr().err


def test_default_is_the_bundled_captioner_unless_a_folder_has_that_name(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [*M_D, "--search", "greedy", "--compare", "default", "--format", "jsonl"]
    assert main(same) == 0
    assert as_json(capsys)["comparison"]["with"]["name"] == "bundled"
    shutil.copytree(album / "other", album / "default")
    assert main(same) == 2
    assert "write ./default for the folder" in capsys.readouterr().err
    assert main([*same[:-3], "./default", "--format", "jsonl"]) == 0
    assert as_json(capsys)["comparison"]["with"]["name"] == "./default"


def test_bad_rows_and_unreadable_photos_stop_before_captioning_or_are_left_out_and_counted(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (album / "6.jpg").write_bytes(b"\xff\xd8 broken")
    assert main(M_D) == 2
    heard = capsys.readouterr()
    assert "1 bad row; mend them, or leave them out with --skip-bad" in heard.err
    assert "6.jpg" in heard.err
    assert main([*M_D, "--skip-bad", "--format", "jsonl"]) == 0
    heard = capsys.readouterr()
    assert json.loads(heard.out)["signature"]["images"] == 1
    assert "left out: 1 bad row" in heard.err
    (album / "7.jpg").write_bytes(b"")
    assert main([*M_D, "--skip-bad"]) == 2
    assert "no photo to score is left" in capsys.readouterr().err
    (album / "7.jpg").unlink()
    assert main(M_D) == 2
    assert "data.csv:16: photo '7.jpg' isn't there" in capsys.readouterr().err


# --- refused before the work ----------------------------------------------------------------------------------------


def never(*_: object, **__: object) -> Any:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give|none of them is given"),
        (["--data", "data.csv", "--predictions", "p"], "give one of them"),
        (["--predictions", "p"], "needs --references R"),
        (["--references", "r"], "none of them is given"),
        (["--data", "d", "--references", "r"], "--references belongs to --predictions"),
        (["--data", "d", "--partial"], "--partial belongs to --predictions"),
        (["--predictions", "p", "--references", "r", "--model", "m"], "--model belongs to --data"),
        (["--predictions", "p", "--references", "r", "--search", "greedy"], "--search belongs to --data"),
        (["--predictions", "p", "--references", "r", "--batch-size", "3"], "--batch-size belongs to --data"),
        (["--predictions", "p", "--references", "r", "--device", "cpu"], "--device belongs to --data"),
        (["--predictions", "p", "--references", "r", "--image-column", "i"], "--image-column belongs to --data"),
        (["--predictions", "p", "--references", "r", "--skip-bad"], "--skip-bad belongs to --data"),
        (["--data", "d", "--force"], "--force belongs to --compare"),
        (["--data", "d", "--batch-size", "0"], "--batch-size must be a whole number in 1..4096"),
        (["--data", "data.csv", "--search", "magic"], "magic"),
        (["--data", "data.csv", "--device", "toaster"], "toaster"),
        (["--data", "nowhere"], "nowhere doesn't exist"),
        (["--data", "data.csv", "--model", "no/such/model/here"], "no/such/model"),
        (["--data", "data.csv", "--compare", "data.csv"], "neither a result that --output saved nor a captioner"),
        (["--data", "data.csv", "--compare", "no such thing"], "no such thing"),
        (["--data", "data.csv", "--image-column", "pic"], "no column 'pic'"),
        (["--predictions", "p", "--references", "nowhere.json"], "there is no file nowhere.json"),
        (["--predictions", "p", "--references", "data.csv", "--compare", "model"], "is a folder"),
        (["--predictions", "p", "--references", "data.csv", "--compare", "x.json"], "no such file"),
        (["--predictions", "p", "--references", "data.csv", "--compare", "x" * 300], "no such file"),
        (["--data", "data.csv", "--output", "model"], "--output model is a folder"),
        (["--data", "data.csv", "--report", "no/such/folder/x.html"], "make it first"),
        (["--data", "data.csv", "--report", "/dev/null"], "no ordinary file"),
        (["--data", "data.csv", "--report", ""], "names no file"),
        (["--data", "data.csv", "--output", "x" * 300], "can't be written"),
        (["--data", "data.csv", "--output", "data.csv"], "exists and is no saved result"),
        (["--data", "data.csv", "--report", "page.html"], "exists and is no report of showtell"),
        (["--data", "data.csv", "--output", "x", "--report", "./x"], "must name different files"),
        (["--data", "data.csv", "--compare", "a\0b"], "no folder 'a"),
        (["--data", "data.csv", "--output", "model/loop"], "no ordinary file"),
        (["--predictions", "model/loop", "--references", "data.csv"], "there is no file model/loop"),
        (["--predictions", "a\0b", "--references", "data.csv"], "there is no file"),
    ],
)
def test_a_call_that_cannot_work_says_why_and_exits_with_2(
    arguments: list[str],
    message: str,
    album: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (album / "page.html").write_text("<!doctype html><title>precious</title>")
    (album / "model" / "loop").symlink_to("loop")
    before = {path: path.read_bytes() for path in album.iterdir() if path.is_file()}
    monkeypatch.setattr(command, "evaluate", never)
    monkeypatch.setattr(command, "score_predictions", never)
    given = arguments if {"--model", "--predictions"} & set(arguments) else ["--model", "model", *arguments]
    assert main(["evaluate", *given]) == 2
    heard = capsys.readouterr()
    assert any(part in heard.err for part in message.split("|")), heard.err
    assert heard.err.count("\n") <= 12
    assert heard.out == ""
    assert {path: path.read_bytes() for path in album.iterdir() if path.is_file()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder nobody may write to, the superuser either")
def test_a_place_that_may_not_be_written_to_is_refused_before_the_work(
    album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "evaluate", never)
    assert main([*M_D, "--output", "/proc/x.json"]) == 2
    assert "/proc/x.json can't be written" in capsys.readouterr().err


def test_a_metric_that_cannot_run_is_refused_before_the_work(
    album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "evaluate", never)
    monkeypatch.setattr(command, "coco_problem", lambda metric: f"{metric} needs Java: install it")
    assert main([*M_D, "--metrics", "BLEU-4,meteor"]) == 2
    assert capsys.readouterr().err == "showtell: METEOR needs Java: install it\n"
    with pytest.raises(MissingPackageError):
        command._metrics("SPICE")


def test_a_result_and_a_report_of_before_are_replaced_whole_or_stay(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ["--output", "out.json", "--report", "out.html"]
    assert main([*P_R, *both]) == 0
    assert main(["evaluate", "--predictions", "dull.csv", *P_R[3:], *both]) == 0
    before = [(files / name).read_bytes() for name in ("out.json", "out.html")]
    assert Evaluation.load(files / "out.json").name == "dull.csv"
    assert main([*P_R, "--compare", "out.json", "--output", "out.json"]) == 2
    assert "must name different files" in capsys.readouterr().err

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([*P_R, *both]) == 2
    heard = capsys.readouterr()
    assert "free some space" in heard.err
    assert "BLEU-4" in heard.out  # the work isn't lost
    assert [(files / name).read_bytes() for name in ("out.json", "out.html")] == before
    assert sorted(path.name for path in files.iterdir()) == ["dull.csv", "good.jsonl", "out.html", "out.json", "r.json"]


def test_a_result_is_saved_though_nobody_reads_the_table(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(command, "as_text", closed)
    options = build_parser().parse_args([*P_R, "--output", "out.json"])
    with pytest.raises(BrokenPipeError):
        options.run(options)
    assert Evaluation.load(files / "out.json").name == "good.jsonl"


def test_a_saved_result_whose_scores_were_changed_is_compared_with_nothing(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*P_R, "--output", "out.json"]) == 0
    saved = json.loads((files / "out.json").read_text())
    saved["scores"]["CIDEr-D"] = 9.9
    (files / "out.json").write_text(json.dumps(saved))
    for force in ([], ["--force"]):
        assert main([*P_R, "--compare", "out.json", *force]) == 2
        assert "CIDEr-D isn't that of the captions" in capsys.readouterr().err


def test_a_stopped_evaluation_does_not_promise_to_continue(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "score_predictions", stop)
    assert main([*P_R, "--output", "out.json"]) == 130
    assert capsys.readouterr().err.endswith("showtell: stopped\n")


def test_names_and_captions_command_no_terminal(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = "red \x1b[31m\u202e \ud800 \n name"
    (files / "r.json").write_text(json.dumps({"x\udcff.jpg": ["a dog"], "y.jpg": ["a cat"]}))
    (files / "good.jsonl").write_text(lines(*({"id": i, "caption": "\x1b[2J dog"} for i in ("x\udcff.jpg", "y.jpg"))))
    assert main([*P_R, "--name", strange]) == 0
    text = capsys.readouterr().out
    assert not {"\x1b", "\u202e", "\ud800"} & set(text)
    assert "most common 100.0%: \\x1b[2J dog" in text
    assert main([*P_R, "--name", strange, "--format", "jsonl", "--output", "out.json", "--report", "out.html"]) == 0
    assert as_json(capsys)["name"] == strange
    assert main([*P_R, "--compare", "out.json"]) == 0


def test_the_table_is_aligned_and_its_intervals_are_those_of_confidence(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*P_R, "--name", "n" * 60, "--output", "out.json"]) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(table) == 1 + len(METRICS)
    assert len({line.index(".") for line in table[1:]}) == 1
    assert table[0].split()[1] == "..." + "n" * 21
    intervals = confidence(Evaluation.load(files / "out.json")).intervals
    for line, interval in zip(table[1:], intervals.values(), strict=True):
        assert interval is not None
        assert line.endswith(f"{interval.low:.4f} to {interval.high:.4f}")


def test_the_command_runs_in_a_process_of_its_own_with_numbers_on_stdout_and_news_on_stderr(files: Path) -> None:
    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "showtell", *arguments], capture_output=True, text=True)

    done = called(*P_R, "--format", "jsonl", "--output", "out.json")
    assert done.returncode == 0
    assert list(json.loads(done.stdout)) == ["name", "signature", "scores", "health", "confidence"]
    assert "the result is in out.json" in done.stderr
    failed = called(*P_R[:-1], "nowhere.json")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("showtell: there is no file nowhere.json")
