"""The report shows what the result holds, whatever it holds, in one file that asks for nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from report_examples import Glance, attending_captioner, photo_files, result
from showtell import ArgumentError, Features, NotFoundError, RunError
from showtell.evaluation import Evaluation, ScoredPhoto, score_predictions
from showtell.evaluation.attention import attention_maps
from showtell.evaluation.compare import compare, confidence
from showtell.evaluation.report import write_report
from showtell.evaluation.report_charts import nice_step
from showtell.evaluation.report_html import clean, element, join, percent, score, signed, text
from showtell.metrics import Scores, ptb_tokenize
from showtell.metrics.diversity import Health
from showtell.testing import TinyEncoder, check_decoder, tiny_captioner

VOID = {"meta", "link", "img", "br"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "'; DROP TABLE captions; -- </style></title></svg>",
    "&lt;script&gt; &amp; &#x3C;b&#x3E;",
    "half \ud800 a character \udfff",
    "bell \x07 null \x00 escape \x1b[31m delete \x7f next line \x85",
    "turned \u202egnirts\u202c and \u2067isolated",
    "new\nlines\r\nand\u2028more\ttabs",
    "x" * 100_000,
    "word " * 2_000,
    "",
    "   ",
    "\u0627\u0644\u0643\u0644\u0628 \u064a\u062c\u0631\u064a \U0001f415 Z\u0337\u0303a\u0337l\u0337g\u0337o\u0337",
)


class Page(HTMLParser):
    """A page taken apart: every element with its attributes and its text; tags that don't match are an error."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **{f"@{k}": v for k, v in attrs}}
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append(found)
        if tag not in VOID:
            self.open.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for each in self.open:
            each["text"] += data

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, Any]]:
        return [
            e
            for e in self.elements
            if e["tag"] == tag and (class_ is None or class_ in (e.get("@class") or "").split())
        ]

    def texts(self, tag: str, class_: str | None = None) -> list[str]:
        return [e["text"] for e in self.all(tag, class_)]

    def rows(self, table: str) -> list[list[str]]:
        """The cells of the table of that class, row by row."""
        start = next(i for i, e in enumerate(self.elements) if e["tag"] == "table" and table in e["@class"].split())
        found: list[list[str]] = []
        for e in self.elements[start + 1 :]:
            if e["tag"] == "tr":
                found.append([])
            elif e["tag"] in ("td", "th") and found:
                found[-1].append(e["text"])
            elif e["tag"] in ("section", "h2"):
                break
        return found


def report(folder: Path, evaluation: Evaluation, **options: Any) -> Page:
    path = folder / "report.html"
    write_report(path, evaluation, **options)
    source = path.read_text(encoding="utf-8")
    assert_it_is_safe(page := Page(source))
    return page


def assert_it_is_safe(page: Page) -> None:
    """Nothing runs, nothing is fetched, and the policy that says so comes before anything it is about."""
    assert page.source.startswith("<!doctype html>\n")
    assert page.all("script") + page.all("iframe") + page.all("object") + page.all("form") + page.all("a") == []
    for e in page.elements:
        assert not any(key.startswith("@on") or key == "@style" for key in e), e
        for key in ("@src", "@href", "@action", "@srcset", "@poster", "@xlink:href"):
            assert e.get(key) is None or re.match("data:|#", e[key]), e
    assert not re.search(r"url\(|@import|https?:", "".join(page.texts("style")))
    policies = [e for e in page.all("meta") if e.get("@http-equiv") == "Content-Security-Policy"]
    (policy,) = policies
    before = [e["tag"] for e in page.elements[: page.elements.index(policy)]]
    assert set(before) == {"html", "head", "meta"}
    rules = dict(rule.strip().split(" ", 1) for rule in policy["@content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (style,) = page.texts("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert set(rules) == {"default-src", "img-src", "style-src", "base-uri", "form-action"}
    page.source.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.source)


def jpegs(page: Page) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(e["@src"].partition(",")[2]))) for e in page.all("img")]


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_the_scores_with_their_intervals_are_in_the_table(tmp_path: Path) -> None:
    evaluation = result()
    page = report(tmp_path, evaluation)
    intervals = confidence(evaluation).intervals
    assert page.rows("scores")[0] == ["Metric", "Score", "95% interval"]
    expected = []
    for metric, value in evaluation.scores.corpus.items():
        interval = intervals[metric]
        assert interval is not None
        expected.append([metric, f"{value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}"])
    assert page.rows("scores")[1:] == expected
    assert page.texts("h1") == ["one"]
    assert "24 photos" in page.texts("ul", "facts")[0]
    assert "3 references each" in page.texts("ul", "facts")[0]


def test_the_signature_is_there_in_one_line_as_it_is_published(tmp_path: Path) -> None:
    evaluation = result(search="beam:3")
    page = report(tmp_path, evaluation)
    assert page.texts("code") == [str(evaluation.signature)]
    assert "search beam:3" in page.texts("ul", "facts")[0]


def test_every_number_of_the_captions_health_is_shown(tmp_path: Path) -> None:
    health = Health(
        captions=12345, unique_ratio=0.1234, most_common="usual", most_common_ratio=0.2345, vocabulary=34567,
        mean_length=45.6789, min_length=56, max_length=6789, repeated_word_ratio=0.3456, bad_ending_ratio=0.4567,
        unknown_ratio=0.5678, empty_ratio=0.6789, novelty=0.7891,
    )  # fmt: skip
    shown = ["12,345", "12.3%", "usual", "23.4%", "34,567", "45.7", "56 to 6,789", "34.6%"]
    shown += ["45.7%", "56.8%", "67.9%", "78.9%"]
    assert len(shown) == len(fields(Health)) - 1  # two of them in one
    table = " ".join(" ".join(row) for row in report(tmp_path, replace(result(), health=health)).rows("health"))
    assert [value for value in shown if value not in table] == []
    assert "New" not in " ".join(" ".join(row) for row in report(tmp_path, result()).rows("health"))


def test_best_median_and_worst_photos_are_shown_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    evaluation = result(count=40, images=photo_files(tmp_path, 40))
    page = report(tmp_path, evaluation)
    values = evaluation.scores.each["CIDEr-D"]
    order = sorted(range(40), key=lambda i: (-values[i], evaluation.photos[i].id))
    expected = [*order[:6], *order[17:23], *order[:33:-1]]
    assert [text for text in page.texts("h2") if "photos" in text] == ["Best photos", "Median photos", "Worst photos"]
    cards = page.texts("article")
    assert len(cards) == 18
    for card, i in zip(cards, expected, strict=True):
        photo = evaluation.photos[i]
        numbers = [f"{evaluation.scores.each[metric][i]:.3f}" for metric in ("CIDEr-D", "BLEU-4", "ROUGE-L")]
        for shown in (photo.caption, *photo.references, photo.id, *numbers, f"\u2212{-(photo.log_prob or 0):.3f}"):
            assert shown in card
    assert [image.size for image in jpegs(page)] == [(320, 240) if i % 2 else (240, 320) for i in expected]


def test_photos_that_score_the_same_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    photos = [ScoredPhoto(name, "a dog", ("a dog runs",)) for name in "qwertzuiopasdfghjklyxcvbnm"]
    page = report(tmp_path, score_predictions("equal", photos))
    ids = [e["text"] for e in page.all("p", "id")]
    assert ids == [*"abcdef", *"klmnop", *"zyxwvu"]


def test_few_photos_are_shown_all_and_once(tmp_path: Path) -> None:
    evaluation = result(count=7)
    page = report(tmp_path, evaluation)
    assert sorted(page.texts("p", "id")) == sorted(photo.id for photo in evaluation.photos)
    assert "7 photos are few" in page.source


def test_photos_are_ranked_by_what_there_is_without_cider(tmp_path: Path) -> None:
    evaluation = score_predictions("x", result(count=30).photos, metrics=["BLEU-1", "ROUGE-L"])
    page = report(tmp_path, evaluation)
    values = evaluation.scores.each["ROUGE-L"]
    assert page.texts("p", "id")[0] == evaluation.photos[max(range(30), key=lambda i: values[i])].id
    assert [figure for figure in page.texts("h3") if "each photo" in figure] == ["ROUGE-L of each photo"]


def bars(page: Page, title: str) -> list[str]:
    """What the bars of a chart say of themselves."""
    start = next(i for i, e in enumerate(page.elements) if e["tag"] == "h3" and e["text"] == title)
    found = []
    for e in page.elements[start + 1 :]:
        if e["tag"] == "figure":
            break
        if e["tag"] == "title" and "rect" in e["inside"]:
            found.append(e["text"])
    return found


def test_the_bars_of_a_histogram_count_every_photo(tmp_path: Path) -> None:
    evaluation = result(count=200)
    page = report(tmp_path, evaluation)
    for metric in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        values = evaluation.scores.each[metric]
        found = bars(page, f"{metric} of each photo")
        assert len(found) > 3
        total = 0
        for bar in found:
            match = re.fullmatch(r"([\d.]+) to ([\d.]+): (\d+) photos", bar)
            assert match, bar
            low, high, counted = float(match[1]), float(match[2]), int(match[3])
            assert counted == sum(low <= v < high or (v == high == 1.0) for v in values), bar
            total += counted
        assert total == 200


def test_the_bars_of_lengths_are_shares_and_the_outline_is_of_the_references(tmp_path: Path) -> None:
    evaluation = result(count=50)
    found = dict(bar.rsplit(": ", 1) for bar in bars(report(tmp_path, evaluation), "Length of captions"))
    lengths = [len(ptb_tokenize(caption)) for caption in evaluation.captions]
    for bar, share in found.items():
        length = int(bar.split(" to ")[0])
        assert share == f"{100 * lengths.count(length) / 50:.1f}%"
    assert len(found) == len(set(lengths))


def test_charts_say_in_words_what_they_show_and_name_their_axes(tmp_path: Path) -> None:
    evaluation = result(count=60)
    page = report(tmp_path, evaluation)
    charts = page.all("svg", "chart")
    assert len(charts) == 4
    assert all(chart["@role"] == "img" for chart in charts)
    middle = np.median(evaluation.scores.each["ROUGE-L"])
    assert f"edian {middle:.2f}" in charts[2]["@aria-label"]
    labels = page.texts("text", "label")
    assert [label for label in labels if label in ("CIDEr-D", "BLEU-4", "ROUGE-L", "words")] == [
        "CIDEr-D", "BLEU-4", "ROUGE-L", "words",
    ]  # fmt: skip
    assert labels.count("photos") == 3
    assert labels.count("% of captions") == 1


def test_one_caption_of_great_length_doesnt_squeeze_the_others(tmp_path: Path) -> None:
    photos = list(result(count=20).photos)
    photos[3] = replace(photos[3], caption="long " * 5000)
    found = bars(report(tmp_path, score_predictions("x", photos)), "Length of captions")
    assert len(found) > 3
    assert found[-1].startswith("60 to 61: 5.0%")


# --- two side by side -------------------------------------------------------------------------------------------------


def test_two_results_stand_side_by_side_with_their_differences(tmp_path: Path) -> None:
    ours, theirs = result("ours", 40), result("theirs", 40)
    page = report(tmp_path, ours, other=theirs)
    expected = compare(theirs, ours)
    assert page.texts("h1") == ["theirs and ours"]
    rows = page.rows("comparison")
    assert rows[0][1:3] == ["theirs", "ours"]
    for row, one in zip(rows[1:-1], expected.differences, strict=True):
        assert one.interval is not None
        assert one.better is not None
        assert row[0] == one.metric
        assert row[1].startswith(f"{one.a:.3f}")
        assert row[2].startswith(f"{one.b:.3f}")
        assert row[3] == f"{signed(one.difference)}{signed(one.interval.low)} to {signed(one.interval.high)}"
        assert row[4] == percent(one.better)
    marked = [e["text"] for e in page.all("strong") if "table" in e["inside"]]
    assert marked == [signed(one.difference) for one in expected.differences if one.significant]
    assert page.texts("code") == [str(theirs.signature), str(ours.signature)]
    for outline in ("a", "b", "r"):
        drawn = [e for e in page.all("path", "outline") if outline in e["@class"].split() and len(e["@d"]) > 20]
        assert len(drawn) == {"a": 0, "b": 4, "r": 1}[outline]


def test_photos_where_two_results_differ_most_are_shown_each_way_with_both_captions(tmp_path: Path) -> None:
    ours, theirs = result("ours", 40), result("theirs", 40)
    page = report(tmp_path, ours, other=theirs)
    a, b = theirs.scores.each["CIDEr-D"], ours.scores.each["CIDEr-D"]
    ids = [photo.id for photo in ours.photos]
    better = sorted(range(40), key=lambda i: (a[i] - b[i], ids[i]))[:6]
    worse = sorted(range(40), key=lambda i: (b[i] - a[i], ids[i]))[:6]
    both = sorted(range(40), key=lambda i: (max(a[i], b[i]), ids[i]))[:6]
    assert page.texts("p", "id") == [ids[i] for i in (*better, *worse, *both)]
    headings = page.texts("h2")
    assert headings[-3:] == ["Where ours does better", "Where theirs does better", "Where both do worst"]
    for card, i in zip(page.texts("article"), (*better, *worse, *both), strict=True):
        assert ours.photos[i].caption in card
        assert theirs.photos[i].caption in card
        assert f"{a[i]:.3f}" in card
        assert f"{b[i]:.3f}" in card


def test_identical_results_have_no_photos_that_differ(tmp_path: Path) -> None:
    page = report(tmp_path, result(), other=result())
    assert page.texts("h1") == ["one (first) and one (second)"]
    assert page.texts("h2")[-1] == "Where both do worst"
    assert not any("does better" in heading for heading in page.texts("h2"))


def test_results_that_dont_compare_are_refused_unless_forced_and_then_the_report_says_so(tmp_path: Path) -> None:
    ours, theirs = result("ours", 12, search="greedy"), result("theirs", 14)
    with pytest.raises(ArgumentError, match="force"):
        write_report(tmp_path / "report.html", ours, other=theirs)
    assert list(tmp_path.iterdir()) == []
    page = report(tmp_path, ours, other=theirs, force=True)
    (told,) = page.texts("div", "unlike")
    for what in compare(theirs, ours, force=True).unlike:
        assert what in told
    assert "12 photos" in page.texts("ul", "facts")[0]
    assert page.texts("div", "unlike") != report(tmp_path, ours).texts("div", "unlike") == []


def test_a_comparison_at_hand_is_shown_as_it_is(tmp_path: Path) -> None:
    ours, theirs = result("ours"), result("theirs")
    found = compare(theirs, ours, seed=7, samples=300)
    page = report(tmp_path, ours, comparison=found)
    assert page.source == report(tmp_path, ours, other=theirs, comparison=found).source
    interval = found.differences[0].interval
    assert interval is not None
    assert f"{signed(interval.low)} to {signed(interval.high)}" in page.rows("comparison")[1][3]
    with pytest.raises(ArgumentError, match="comparison is of"):
        write_report(tmp_path / "report.html", theirs, comparison=found)
    with pytest.raises(ArgumentError, match="comparison is of"):
        write_report(tmp_path / "report.html", ours, other=result("third"), comparison=found)


def test_a_difference_where_the_first_has_nothing_is_shown_without_a_plot(tmp_path: Path) -> None:
    photos = [replace(photo, caption="") for photo in result(count=12).photos]
    page = report(tmp_path, result(count=12), other=score_predictions("silent", photos))
    assert page.all("circle", "dot") == []
    assert page.rows("comparison")[5][1].startswith("0.000")


@pytest.mark.parametrize("given", [{"evaluation": None}, {"evaluation": "x.json"}, {"other": {}}, {"comparison": 3}])
def test_what_is_no_result_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    options = {"evaluation": result(), **given}
    with pytest.raises(ArgumentError, match="a report shows a result"):
        write_report(tmp_path / "report.html", **options)


# --- hostile and missing ----------------------------------------------------------------------------------------------


def test_hostile_text_stays_text_wherever_it_stands(tmp_path: Path) -> None:
    photos = [
        ScoredPhoto(f"{i}{bad[:300]}", bad, (bad, f"{bad[:2000]} again"), image=bad[:300] or None)
        for i, bad in enumerate(HOSTILE)
    ]
    evaluation = score_predictions(HOSTILE[0] + HOSTILE[1] + HOSTILE[4], photos, search=HOSTILE[5] + HOSTILE[2])
    other = score_predictions(HOSTILE[6], [replace(photo, caption=photo.caption[::-1]) for photo in photos])
    alone = report(tmp_path, evaluation)
    cleaned = ("half \ufffd a character \ufffd", "new lines and more tabs", "no caption")
    assert {*HOSTILE[:2], HOSTILE[3], *cleaned} - set(alone.texts("p", "caption")) == set()
    for page in (alone, report(tmp_path, evaluation, other=other, force=True)):
        captions = page.texts("p", "caption")
        assert any("(100,000 characters)" in caption for caption in captions)
        assert max(map(len, captions)) < 700
        assert page.all("img") == []
    assert len(page.source) < 300_000


def test_pictures_that_cant_be_had_are_replaced_by_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    good = photo_files(tmp_path, 1)[0]
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
    images: list[Path | str | None] = [good, None, tmp_path]
    images += ["absent.jpg", "https://example.org/a.jpg", "nul\0.jpg", "", "~", "x" * 5000, "half\ud800.jpg"]
    images += [tmp_path / name for name in ("text.jpg", "empty.jpg", "pipe.jpg", "cut.jpg")]
    page = report(tmp_path, result(count=len(images), images=images))
    assert len(page.all("img")) == 1
    missing = page.texts("div", "missing")
    assert len(missing) == len(images) - 1
    assert all(sentence.startswith("No picture: ") and sentence.endswith(".") for sentence in missing)
    assert sum("doesn't say where" in sentence for sentence in missing) == 1
    assert max(map(len, missing)) < 400


def test_pictures_are_small_upright_and_few_enough(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 8
    noise = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8)
    files = []
    for i in range(30):
        files.append(tmp_path / f"{i}.jpg")
        Image.fromarray(np.roll(noise, i, axis=0)).save(files[-1], exif=exif)
    page = report(tmp_path, result(count=30, images=files))
    assert {image.size for image in jpegs(page)} == {(224, 320)}
    assert {(e["@width"], e["@height"]) for e in page.all("img")} == {("224", "320")}
    assert len(page.source) < 2_000_000  # noise is the hardest there is


def test_a_result_without_photos_gives_a_report_without_photos(tmp_path: Path) -> None:
    one = result(count=3)
    nobody = replace(one, photos=(), scores=Scores({"BLEU-4": 0.0, "CIDEr-D": 0.0}, {"BLEU-4": (), "CIDEr-D": ()}))
    page = report(tmp_path, nobody)
    assert "0 photos" in page.texts("ul", "facts")[0]
    assert page.rows("scores")[1] == ["BLEU-4", "0.000", "none"]
    assert page.all("article") == page.all("svg", "chart") == []


def test_one_photo_gives_a_report_without_intervals(tmp_path: Path) -> None:
    page = report(tmp_path, result(count=1, images=photo_files(tmp_path, 1)))
    assert {row[2] for row in page.rows("scores")[1:]} == {"none"}
    assert "One photo says nothing about others" in page.source
    assert len(page.all("article")) == len(page.all("img")) == 1
    assert "1 photo" in page.texts("ul", "facts")[0].replace("1 photos", "")


def test_numbers_that_are_no_numbers_are_called_so(tmp_path: Path) -> None:
    evaluation = result(count=5)
    each = {metric: (float("nan"), float("inf"), *values[2:]) for metric, values in evaluation.scores.each.items()}
    corpus = dict.fromkeys(evaluation.scores.corpus, float("nan"))
    page = report(tmp_path, replace(evaluation, scores=Scores(corpus, each)))
    assert page.rows("scores")[1][1] == "not a number"
    assert "\u221e" in "".join(page.texts("article"))


def test_the_same_result_gives_the_same_file(tmp_path: Path) -> None:
    evaluation = result(count=30, images=photo_files(tmp_path, 30))
    assert report(tmp_path, evaluation).source == report(tmp_path, evaluation).source


def test_a_report_that_cant_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_report(path, result(count=4))
    old = path.read_bytes()
    with pytest.raises(RunError, match="make the folder"):
        write_report(tmp_path / "nowhere" / "report.html", result(count=4))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("showtell.journal._write_synced", full)
    with pytest.raises(RunError, match="free some space"):
        write_report(path, result(count=5))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


# --- attention --------------------------------------------------------------------------------------------------------


def test_the_decoder_of_these_tests_obeys_the_laws() -> None:
    features = TinyEncoder()(torch.rand(2, 3, 32, 32))
    check_decoder(attending_captioner().decoder, Features(*(None if t is None else t.detach() for t in features)))


def heat(path: str) -> list[tuple[float, ...]]:
    """The rectangles of a path: x0 y0 x1 y1 each."""
    found = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H([\d.]+)z", path)
    assert "".join("M{} {}H{}V{}H{}z".format(*numbers) for numbers in found) == path
    return [tuple(map(float, numbers[:4])) for numbers in found]


def test_attention_is_shown_word_by_word_with_the_weights_of_the_forced_pass(tmp_path: Path) -> None:
    captioner = attending_captioner()
    files = photo_files(tmp_path, 2)
    photos = [
        ScoredPhoto("0", "a dog runs on the grass", ("a dog",), str(files[0])),
        ScoredPhoto("1", "", ("a cat",), str(files[1])),
    ]
    page = report(tmp_path, score_predictions("mine", photos), captioner=captioner)
    assert page.texts("summary") == ["Attention, word by word"]  # none for the caption without words
    words_shown = [e["text"] for e in page.all("figcaption") if "details" in e["inside"]]
    assert words_shown == ["a", "dog", "runs", "on", "the", "grass"]

    words = captioner.vocabulary
    ids = words.encode("a dog runs on the grass")
    with torch.no_grad():
        features = captioner.encode(str(files[0]))
        maps = captioner(features, torch.tensor([[words.start_id, *ids[:-1]]]), attention=True).attention
    assert maps is not None
    groups = [i for i, e in enumerate(page.elements) if e["tag"] == "g" and e.get("@class") == "heat"]
    assert len(groups) == 6
    for row, start in zip(maps[0], groups, strict=True):
        shown = np.zeros(16)
        for e in page.elements[start + 1 :]:
            if e["tag"] != "path":
                break
            for x0, y0, x1, y1 in heat(e["@d"]):
                assert (x1 - x0, y1 - y0) == (8, 8)  # 4 x 4 cells on 32 x 32 pixels
                shown[int(y0 // 8 * 4 + x0 // 8)] = float(e["@opacity"]) / 0.8
        assert shown * float(maps.max()) == pytest.approx(row.numpy(), abs=float(maps.max()) / 30)
    (seen,) = page.all("image")
    picture = Image.open(io.BytesIO(base64.b64decode(seen["@href"].partition(",")[2])))
    assert picture.size == (32, 32) == (int(seen["@width"]), int(seen["@height"]))
    assert {e["@href"] for e in page.all("use")} == {f"#{seen['@id']}"}


def test_in_a_comparison_the_captioner_is_that_of_the_result_itself(tmp_path: Path) -> None:
    files = photo_files(tmp_path, 8)
    ours, theirs = result("ours", 8, images=files), result("theirs", 8, images=files)
    page = report(tmp_path, ours, other=theirs, captioner=attending_captioner())
    captions = {photo.caption for photo in ours.photos}
    start = [i for i, e in enumerate(page.elements) if e["tag"] == "details"]
    assert start
    for i in start:
        words = []
        for e in page.elements[i + 1 :]:
            if e["tag"] == "article":
                break
            if e["tag"] == "figcaption":
                words.append(e["text"])
        assert " ".join(words) in captions
    ids = [e["@id"] for e in page.elements if "@id" in e]
    assert len(ids) == len(set(ids))


def test_a_captioner_without_attention_adds_nothing(tmp_path: Path) -> None:
    evaluation = result(count=4, images=photo_files(tmp_path, 4))
    assert report(tmp_path, evaluation, captioner=tiny_captioner()).source == report(tmp_path, evaluation).source


def test_attention_that_cant_be_had_costs_a_sentence(tmp_path: Path) -> None:
    class Blind(TinyEncoder):
        def forward(self, images: torch.Tensor) -> Features:
            return super().forward(images)._replace(boxes=None)

    evaluation = result(count=2, images=photo_files(tmp_path, 2))
    captioner = attending_captioner()
    captioner.encoder = Blind()
    page = report(tmp_path, evaluation, captioner=captioner)
    assert page.all("details") == []
    assert page.source.count("No attention maps: Blind doesn&#x27;t say where its regions are") == 2


def test_masked_regions_and_impossible_weights_are_left_out(tmp_path: Path) -> None:
    class Half(TinyEncoder):
        def forward(self, images: torch.Tensor) -> Features:
            return super().forward(images)._replace(mask=torch.arange(16).expand(len(images), 16) < 8)

    class Wild(Glance):
        def forward(self, tokens: torch.Tensor, memory: Any, *, attention: bool = False) -> Any:
            found = super().forward(tokens, memory)
            return found._replace(attention=torch.tensor([3.0, torch.nan, -1.0, 0.5] * 4).expand(*tokens.shape, 16))

    (file,) = photo_files(tmp_path, 1)
    captioner = attending_captioner()
    captioner.encoder, captioner.decoder = Half(), Wild(len(captioner.vocabulary), 16)
    maps = attention_maps(captioner, file, "a dog")
    assert maps.words == ("a", "dog")
    assert maps.weights.tolist() == [[1.0, 0.0, 0.0, 0.5] * 2 + [0.0] * 8] * 2


def test_attention_of_another_shape_or_none_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    class Wrong(Glance):
        def forward(self, tokens: torch.Tensor, memory: Any, *, attention: bool = False) -> Any:
            return super().forward(tokens, memory)._replace(attention=torch.zeros(1, 2, 3))

    (file,) = photo_files(tmp_path, 1)
    captioner = attending_captioner()
    captioner.decoder = Wrong(len(captioner.vocabulary), 16)
    with pytest.raises(ArgumentError, match=r"\(1, 2, 3\), not \(1, 2, 16\)"):
        attention_maps(captioner, file, "a dog")
    with pytest.raises(ArgumentError, match="no attention"):
        attention_maps(tiny_captioner(), file, "a dog")
    with pytest.raises(NotFoundError):
        attention_maps(attending_captioner(), tmp_path / "absent.jpg", "a dog")


def test_looking_at_attention_leaves_the_captioner_in_its_mode_and_cuts_long_captions(tmp_path: Path) -> None:
    (file,) = photo_files(tmp_path, 1)
    captioner = attending_captioner().train()
    maps = attention_maps(captioner, file, "a dog " * 100 + "unheard")
    assert len(maps.words) == 40
    assert all(module.training for module in captioner.modules())
    assert attention_maps(captioner, file, "unheard").words == ("<unk>",)
    assert attention_maps(captioner, file, "").words == ()


# --- the pieces -------------------------------------------------------------------------------------------------------


def test_text_becomes_html_escaped_and_html_stays() -> None:
    inner = element("b", 'a "quoted" <word>', title='<"&>')
    assert inner == '<b title="&lt;&quot;&amp;&gt;">a &quot;quoted&quot; &lt;word&gt;</b>'
    assert element("p", inner, None, "&", class_="x", aria_label=None) == f'<p class="x">{inner}&amp;</p>'
    assert join("<", inner) == f"&lt;{inner}"
    assert element("br") == "<br>"
    assert str(inner).upper() == inner.upper()
    assert join(inner[:3]) == "&lt;b "  # a piece of HTML is text again


def test_text_is_cut_cleaned_and_kept_on_one_line() -> None:
    assert text("  a\n b\t", 10) == "a b"
    assert text("abcdef", 6) == "abcdef"
    assert text("abcdefg", 6) == "abcdef \u2026 (7 characters)"
    assert text(" " * 100_000, 10).strip() == "\u2026 (100,000 characters)"
    assert clean("\ud800\x00\u202e\ufffe") == "\ufffd" * 4
    assert clean("caf\u00e9 \U0001f415 \u0627") == "caf\u00e9 \U0001f415 \u0627"


def test_numbers_look_alike() -> None:
    assert [score(0.12345), score(10), score(-0.5), score(float("nan"))] == [
        "0.123",
        "10.000",
        "\u22120.500",
        "not a number",
    ]
    assert [signed(0.0004), signed(-0.0004), signed(0.0006), signed(-1)] == ["0.000", "0.000", "+0.001", "\u22121.000"]
    assert percent(1 / 3) == "33.3%"


def test_steps_of_axes_are_round_and_just_large_enough() -> None:
    for least in (1e-9, 0.0333, 0.04, 0.05, 0.1, 0.99, 1, 1.01, 7, 24, 25, 26, 501, 12345):
        step = nice_step(least)
        assert least * (1 - 1e-6) <= step <= 2.51 * least
        assert float(f"{step:.0e}") == pytest.approx(step) or f"{step:.1e}".startswith("2.5")


# --- colours ----------------------------------------------------------------------------------------------------------


def palettes() -> list[dict[str, str]]:
    """The colours of light and of dark pages, by name."""
    style = (ROOT / "src" / "showtell" / "evaluation" / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_and_lines_have_the_contrast_that_wcag_asks_for_in_light_and_in_dark() -> None:
    light, dark = palettes()
    assert set(light) == set(dark)
    assert luminance(light["page"]) > 0.8 > 0.02 > luminance(dark["page"])
    for colours in (light, dark):
        for ground in ("page", "card", "well"):
            for ink in ("ink", "soft", "a", "b"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (colours, ink, ground)
        for line in ("a", "b", "r"):
            assert contrast(colours[line], colours["page"]) >= 3, (colours, line)


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_installed_package_has_the_style_sheet(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "showtell/evaluation/report.css" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_a_report_of_40_000_photos_is_as_small_as_one_of_40(tmp_path: Path) -> None:
    few = report(tmp_path, result(count=40))
    many = report(tmp_path, result(count=40_000))
    assert "40,000 photos" in many.texts("ul", "facts")[0]
    assert len(many.source) < 1.2 * len(few.source)
