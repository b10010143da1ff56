"""A run as one HTML file: curves, what it said about the same photos over time, settings, data and machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..data import Record
from ..errors import ShowtellError
from ..evaluation.report_curves import Curve, curves
from ..evaluation.report_html import Html, count, element, score, text
from ..evaluation.report_page import page
from ..pictures import Picture, small_picture
from ..progress import duration
from .about import environment, without_folders
from .job import CHOSEN_BY, Job, Progress
from .model_card import CURVE, cell, columns, thinned

__all__ = ["SamplePhoto", "run_report", "sample_photos"]

Rows = Sequence[Mapping[str, Any]]
_MOST_ROWS = 24
_MOST_SAID = 12
_MOST_REFERENCES = 5
_MOST_OTHERS = 12
_OTHERS = {
    "grad_norm": "Length of the gradient",
    "tokens_per_second": "Words a second",
    "data_share": "Waiting for data",
}
_TITLES = {
    **_OTHERS,
    "train_reward": "Reward of drawn captions",
    "train_words": "Words a drawn caption",
    "train_bad_endings": "Drawn captions that end badly",
    "val_words": "Words a validation caption",
    "val_bad_endings": "Validation captions that end badly",
}


@dataclass(frozen=True)
class SamplePhoto:
    """A validation photo that the report shows: its name, a small copy if it can be read, what people wrote."""

    id: str
    picture: Picture | None
    references: tuple[str, ...]


def sample_photos(records: Sequence[Record]) -> list[SamplePhoto]:
    """Small copies of some photos."""
    return [SamplePhoto(record.id, _small(record), record.captions) for record in records]


def _small(record: Record) -> Picture | None:
    try:
        return small_picture(record.photo())
    except ShowtellError:
        return None


def run_report(job: Job, progress: Progress, photos: Sequence[SamplePhoto], state: str) -> str:
    """The whole page of a run as it stands; `state` says how far it is, "running" for instance.

    The page holds everything and asks the network for nothing; it has no scripts and forbids them. No path of this
    machine is in it.
    """
    return page(
        f"{text(job.folder.path.resolve().name, 80)}: training",
        _header(job, progress, state),
        _best(progress),
        _curves(progress),
        _evaluations(progress),
        _samples(progress, photos),
        element("section", element("h2", "Settings"), _settings(job)),
        element("section", element("h2", "Data"), _data(job)),
        element("section", element("h2", "Machine"), _facts(environment(job.captioner.device))),
    )


def _header(job: Job, progress: Progress, state: str) -> Html:
    facts = [
        text(state, 200),
        f"step {count(job.step)} of {count(job.total)}",
        f"{duration(progress.seconds)} of work",
        f"seed {job.recipe.seed}",
    ]
    return element(
        "header",
        element("p", "Training run", class_="kind"),
        element("h1", element("bdi", text(job.folder.path.resolve().name, 80))),
        element("ul", *(element("li", fact) for fact in facts), class_="facts"),
    )


def _best(progress: Progress) -> Html | None:
    if progress.best_step is None:
        return None
    rows = [
        element("tr", element("th", metric, scope="row"), element("td", score(value), class_="main"))
        for metric, value in (*progress.best_scores.items(), ("teacher-forced loss", progress.best_loss))
    ]
    lead = f"Step {count(progress.best_step)}, chosen by {CHOSEN_BY} of captions generated for the validation photos."
    signature = element(
        "p",
        element(
            "code", *(element("span", "|" * (i > 0) + part) for i, part in enumerate(progress.signature.split("|")))
        ),
        class_="signature",
    )
    return element(
        "section",
        element("h2", "The best step"),
        element("p", lead, class_="lead"),
        element("div", element("table", element("tbody", *rows), class_="scores"), class_="wide"),
        signature,
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def _curves(progress: Progress) -> Html:
    steps = [row for row in progress.rows if row["kind"] == "steps"]
    evaluations = [row for row in progress.rows if row["kind"] == "evaluation"]
    dense = steps or evaluations
    best = None if progress.best_step is None else float(progress.best_step)

    def one(title: str, rows: Rows, key: str) -> Html:
        return curves(title, [Curve(title, _points(rows, key), "a")])

    def scored(metric: str, key: str) -> Html:
        name = f"Validation {metric}"
        return curves(name, [Curve(name, _points(evaluations, key), "b")], best=best, decimals=3, span=0.01)

    loss = [
        Curve("training", _points([row for row in dense if "train_reward" not in row], "train_loss"), "a"),
        Curve("validation, right words given", _points(evaluations, "val_teacher_forced_loss"), "b"),
    ]
    drawn = [
        curves("Loss", loss, unit="nats a word"),
        scored(CHOSEN_BY, "val_cider_d"),
        scored("BLEU-4", "val_bleu4"),
        one("Learning rate", dense, "learning_rate"),
    ]
    known = {"kind", "step", "epoch", "best", "learning_rate", *CURVE, *_OTHERS}
    more = list(dict.fromkeys(key for row in (*steps[-1:], *evaluations[-1:]) for key in row if key not in known))
    for key in [*(k for k in _OTHERS if _points(steps, k)), *more[:_MOST_OTHERS]]:
        rows = steps if _points(steps, key) else evaluations
        if _points(rows, key):
            drawn.append(one(_TITLES.get(key, key.replace("_", " ")), rows, key))
    return element("section", element("h2", "Curves"), element("div", *drawn, class_="plots"))


def _evaluations(progress: Progress) -> Html:
    rows = [row for row in progress.rows if row["kind"] == "evaluation"]
    shown = thinned(rows, _MOST_ROWS, progress.best_step)
    heads = columns(rows)
    cells = []
    for row in shown:
        best = row["step"] == progress.best_step
        numbers = [_number(row, key) for key in heads]
        cells.append(
            element(
                "tr",
                element("th", numbers[0], " best" if best else None, scope="row"),
                *(element("td", number, class_="main" if best else None) for number in numbers[1:]),
            )
        )
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in heads.values())))
    lead = f"{count(len(shown))} of {count(len(rows))}, evenly spread." if len(shown) < len(rows) else None
    return element(
        "section",
        element("h2", "Evaluations"),
        None if lead is None else element("p", lead, class_="lead"),
        element("div", element("table", head, element("tbody", *cells), class_="evaluations"), class_="wide"),
    )


def _number(row: Mapping[str, Any], key: str) -> str:
    value = cell(row, key)
    if value is None:
        return ""
    return count(value) if key == "step" else f"{value:.4g}" if key == "epoch" else score(value)


# --- samples ----------------------------------------------------------------------------------------------------------


def _samples(progress: Progress, photos: Sequence[SamplePhoto]) -> Html | None:
    if not progress.samples:
        return None
    cards = [_card(photo, _told(progress, i)) for i, photo in enumerate(photos)]
    lead = "The same validation photos at every evaluation; a caption that stayed is written once."
    return element(
        "section",
        element("h2", "What it said over time"),
        element("p", lead, class_="lead"),
        element("div", *cards, class_="cards"),
    )


def _told(progress: Progress, place: int) -> list[tuple[str, str]]:
    """(when, caption), captions that stayed from one evaluation to the next once."""
    told = []
    for caption, group in groupby(progress.samples, key=lambda sample: sample["captions"][place]):
        steps = [sample["step"] for sample in group]
        last = "" if len(steps) == 1 else f" to {count(steps[-1])}"
        told.append((f"step{'s' * bool(last)} {count(steps[0])}{last}", caption))
    if len(told) <= _MOST_SAID:
        return told
    first = _MOST_SAID // 3
    left_out = (f"{count(len(told) - _MOST_SAID)} other captions in between", "\u2026")
    return [*told[:first], left_out, *told[first - _MOST_SAID :]]


def _card(photo: SamplePhoto, told: Sequence[tuple[str, str]]) -> Html:
    said = [
        element(
            "li",
            element("span", when, class_="when"),
            element("span", text(caption, 300) or element("em", "no caption"), class_="caption", dir="auto"),
        )
        for when, caption in told
    ]
    references = [element("li", text(each, 300), dir="auto") for each in photo.references[:_MOST_REFERENCES]]
    return element(
        "article",
        _picture(photo),
        element(
            "div",
            element("ol", *said, class_="said"),
            element("h4", "People wrote"),
            element("ul", *references, class_="references"),
            element("p", element("bdi", text(photo.id, 120)), class_="id"),
            class_="words",
        ),
        class_="card",
    )


def _picture(photo: SamplePhoto) -> Html:
    found = photo.picture
    if found is None:
        return element("div", element("p", "No picture: the photo can't be read now."), class_="frame missing")
    named = text(f"photo {photo.id}", 200)
    img = element("img", src=found.uri, width=found.width, height=found.height, alt=named, decoding="async")
    return element("div", img, class_="frame")


# --- where it came from -----------------------------------------------------------------------------------------------


def _settings(job: Job) -> Html:
    lead = "A recipe file with these lines gives the same run again, from the same start and data."
    lines = element("pre", element("code", without_folders(job.recipe).toml()), class_="settings", tabindex="0")
    return element("div", element("p", lead, class_="lead"), lines)


def _data(job: Job) -> Html:
    about = job.about
    facts = {
        name: f"{count(photos)} photos, {count(captions)} captions" for name, (photos, captions) in about.counts.items()
    }
    for file in about.files:
        facts[text(file.name, 100)] = f"{count(file.photos)} photos; SHA-256 {file.sha256 or 'not at hand'}"
    if about.file_count > len(about.files):
        facts["other files"] = count(about.file_count - len(about.files))
    facts["all of it"] = f"SHA-256 {about.fingerprint}"
    facts.update({f"licence of the {what}": which for what, which in about.licences.items()})
    return element("div", element("p", text(about.story, 500), class_="lead"), _facts(facts))


def _facts(facts: Mapping[str, str]) -> Html:
    rows = [
        element("tr", element("th", key, scope="row"), element("td", text(value, 300))) for key, value in facts.items()
    ]
    return element("div", element("table", element("tbody", *rows), class_="facts-table"), class_="wide")
