"""Photos of a report: which ones, and the card of each with its captions, references, scores and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.gather import is_file
from ..errors import ShowtellError
from ..pictures import Picture, small_picture
from .attention import SeenMaps, attention_maps
from .report_entry import Entry
from .report_html import Html, count, element, join, percent, score, text

__all__ = ["Group", "groups_of", "photo_groups"]

_A_GROUP = 6
_MOST_REFERENCES = 8
_RANKING = ("CIDEr-D", "CIDEr", "BLEU-4", "ROUGE-L")
_SHOWN = ("CIDEr-D", "BLEU-4", "ROUGE-L", "METEOR", "SPICE")
_LEVELS = 16  # of opacity: regions of one level are one path


@dataclass(frozen=True)
class Group:
    """Some photos under one heading, by their positions."""

    title: Html
    note: str
    photos: tuple[int, ...]


def groups_of(entries: Sequence[Entry]) -> list[Group]:
    """Which photos to show: best, median and worst of one result; where two differ most, and where both do worst.

    By CIDEr-D where there is one; ties are in the order of their ids.
    """
    results = [entry.evaluation for entry in entries]
    each = results[0].scores.each
    metric = next((metric for metric in (*_RANKING, *each) if metric in each), None)
    if not results[0].photos or metric is None:
        return []
    ids = [photo.id for photo in results[0].photos]

    def ranked(keys: Sequence[float]) -> list[int]:
        return sorted(range(len(ids)), key=lambda i: (-keys[i], ids[i]))

    values = [result.scores.each[metric] for result in results]
    if len(values) == 1:
        return _of_one(ranked(values[0]), metric)
    gains = [b - a for a, b in zip(*values, strict=True)]
    ahead = [i for i in ranked(gains) if gains[i] > 0][:_A_GROUP]
    behind = [i for i in ranked([-gain for gain in gains]) if gains[i] < 0][:_A_GROUP]
    worst = ranked([-max(pair) for pair in zip(*values, strict=True)])[:_A_GROUP]
    most = f"The largest differences in {metric}."
    a, b = (entry.label() for entry in entries)
    groups = [
        Group(join("Where ", b, " does better"), most, tuple(ahead)),
        Group(join("Where ", a, " does better"), most, tuple(behind)),
        Group(Html("Where both do worst"), f"The lowest {metric}, that of the better one counting.", tuple(worst)),
    ]
    return [group for group in groups if group.photos]


def _of_one(order: Sequence[int], metric: str) -> list[Group]:
    if len(order) <= 3 * _A_GROUP:
        return [Group(Html("Photos"), f"All of them, the best {metric} first.", tuple(order))]
    middle = (len(order) - _A_GROUP) // 2
    return [
        Group(Html("Best photos"), f"The highest {metric}.", tuple(order[:_A_GROUP])),
        Group(Html("Median photos"), f"The middle of all by {metric}.", tuple(order[middle : middle + _A_GROUP])),
        Group(Html("Worst photos"), f"The lowest {metric}, the worst first.", tuple(order[: -_A_GROUP - 1 : -1])),
    ]


def photo_groups(groups: Sequence[Group], entries: Sequence[Entry]) -> list[Html]:
    """One section a group."""
    number = 0
    sections = []
    for group in groups:
        cards = []
        for position in group.photos:
            number += 1
            cards.append(_card(entries, position, number))
        lead = element("p", group.note, class_="lead")
        sections.append(element("section", element("h2", group.title), lead, element("div", *cards, class_="cards")))
    return sections


def _card(entries: Sequence[Entry], position: int, number: int) -> Html:
    photos = [entry.evaluation.photos[position] for entry in entries]
    image = next((photo.image for photo in photos if photo.image is not None), None)
    voices = [_voice(entry, position, named=len(entries) > 1) for entry in entries]
    photo = photos[0]
    references = [element("li", text(reference, 300), dir="auto") for reference in photo.references[:_MOST_REFERENCES]]
    more = len(photo.references) - len(references)
    if more > 0:
        references.append(element("li", f"and {count(more)} more"))
    return element(
        "article",
        _picture(image, f"photo {photo.id}"),
        element(
            "div",
            *voices,
            element("h4", "People wrote"),
            element("ul", *references, class_="references"),
            _attention(entries[-1], photos[-1].caption, image, number),
            element("p", element("bdi", text(photo.id, 120)), class_="id"),
            class_="words",
        ),
        class_="card",
    )


def _voice(entry: Entry, position: int, *, named: bool) -> Html:
    """What one result says of a photo, and how that scores."""
    photo, each = entry.evaluation.photos[position], entry.evaluation.scores.each
    said = text(photo.caption, 600)
    numbers = [(metric, score(each[metric][position])) for metric in _SHOWN if metric in each]
    if photo.log_prob is not None:
        numbers.append(("log-probability", score(photo.log_prob)))
    return element(
        "div",
        element("p", entry.label(), class_="whose") if named else None,
        element("p", said if said else element("em", "no caption"), class_="caption", dir="auto"),
        element("dl", *(element("div", element("dt", key), element("dd", value)) for key, value in numbers)),
        class_="voice",
    )


def _picture(image: str | None, description: str) -> Html:
    if image is None:
        return _missing("No picture: the evaluation doesn't say where the file is.")
    # A file that isn't a regular one, such as a named pipe, might never end.
    if not is_file(Path(image)):
        return _missing(f"No picture: there is no file {text(image, 200)}.")
    try:
        found = small_picture(image)
    except ShowtellError as error:
        return _missing(f"No picture: {text(str(error), 300)}.")
    return element("div", _img(found, description), class_="frame")


def _img(picture: Picture, description: str) -> Html:
    return element(
        "img", src=picture.uri, width=picture.width, height=picture.height, alt=text(description, 200), decoding="async"
    )


def _missing(why: str) -> Html:
    return element("div", element("p", why), class_="frame missing")


# --- attention ------------------------------------------------------------------------------------------------------


def _attention(entry: Entry, caption: str, image: str | None, number: int) -> Html | None:
    captioner = entry.captioner
    if captioner is None or not captioner.decoder.has_attention or image is None or not is_file(Path(image)):
        return None
    try:
        maps = attention_maps(captioner, image, caption)
    except ShowtellError as error:
        return element("p", f"No attention maps: {text(str(error), 300)}.", class_="note")
    if not maps.words:
        return None
    name, width, height = f"seen-{number}", maps.picture.width, maps.picture.height
    source = element("image", id=name, href=maps.picture.uri, width=width, height=height)
    most = float(maps.weights.max()) or 1.0
    return element(
        "details",
        element("summary", "Attention, word by word"),
        element("svg", element("defs", source), class_="source", aria_hidden="true", width=0, height=0),
        element("div", *(_word(maps, i, name, most) for i in range(len(maps.words))), class_="maps"),
        element(
            "p",
            "What the encoder saw, paler; the stronger the orange, the more the decoder looked.",
            class_="note",
        ),
    )


def _word(maps: SeenMaps, place: int, name: str, most: float) -> Html:
    width, height = maps.picture.width, maps.picture.height
    weights, word = maps.weights[place], text(maps.words[place], 40)
    levels = np.rint(weights / most * _LEVELS).astype(int)
    paths = []
    for level in range(1, _LEVELS + 1):
        boxes = maps.boxes[levels == level] * (width, height, width, height)
        drawn = "".join(f"M{x0:.4g} {y0:.4g}H{x1:.4g}V{y1:.4g}H{x0:.4g}z" for x0, y0, x1, y1 in boxes.tolist())
        if drawn:
            paths.append(element("path", d=drawn, opacity=0.8 * level / _LEVELS))
    told = f"{word}: {percent(min(1.0, float(weights.sum())))} of the attention is on the picture"
    return element(
        "figure",
        element(
            "svg",
            element("title", told),
            element("use", href=f"#{name}"),
            element("g", *paths, class_="heat"),
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=told,
        ),
        element("figcaption", element("bdi", join(word))),
    )
