"""The model card of a run: data, settings, curve, scores, speed, sizes and licences, filled in by the run itself."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import hub
from ..errors import ShowtellError
from ..progress import duration
from ..version import __version__
from .about import About, without_folders
from .job import CHOSEN_BY, Job, Progress

__all__ = ["CURVE", "Speed", "card", "cell", "columns", "measured_speed", "thinned"]

CURVE = {
    "step": "step",
    "epoch": "epoch",
    "train_loss": "training loss",
    "val_teacher_forced_loss": "validation loss",
    "val_cider_d": "CIDEr-D",
    "val_bleu4": "BLEU-4",
}
"""The columns of a table of evaluations: key of metrics.jsonl -> heading."""

_MOST_ROWS = 10
_MOST_PHOTOS, _BATCH, _SECONDS = 64, 8, 2.0


@dataclass(frozen=True)
class Speed:
    """How fast a captioner is, files to captions: photos captioned, and how many that was a second."""

    photos: int
    per_second: float


def measured_speed(job: Job) -> Speed | None:
    """Caption validation photos for some two seconds, at most 64; None where they can't be read."""
    photos = job.judged[:_MOST_PHOTOS]
    done = 0
    try:
        job.captioner.generate([photos[0].photo()], search=job.recipe.search)  # the first one also warms up
        began = time.perf_counter()
        while done < len(photos) and time.perf_counter() - began < _SECONDS:
            some = [record.photo() for record in photos[done : done + _BATCH]]
            job.captioner.generate(some, search=job.recipe.search, batch_size=_BATCH)
            done += len(some)
    except ShowtellError:
        return None
    return Speed(done, done / max(1e-9, time.perf_counter() - began))


def card(job: Job, progress: Progress, environment: Mapping[str, str] | None = None, speed: Speed | None = None) -> str:
    """The model card of the best captioner so far.

    `environment` and `speed` come in at the end of a run; without them a card depends on data, settings and seed alone.
    """
    about = job.about
    photos, captions = about.counts["val"]
    scores = {metric: progress.best_scores[metric] for metric in (CHOSEN_BY, "BLEU-4", "ROUGE-L")}
    scores["teacher-forced loss, nats a word"] = progress.best_loss
    text = hub.model_card(
        title="A captioner trained with showtell",
        license=about.license,
        data=f"{_prose(about.story)} Scores are of the {photos:,} validation photos ({captions:,} captions), which "
        f"chose the best step by {CHOSEN_BY}.\n\n{_data(about)}",
        scores=scores,
        search=job.recipe.search,
        signature=progress.signature,
    )
    best = (
        f"showtell {__version__}, best after {progress.best_step:,} of at most {job.total:,} steps, seed "
        f"{job.recipe.seed}, with"
    )
    sections = [
        f"## Training\n\n{best}\n\n```toml\n{without_folders(job.recipe).toml()}```",
        f"## Curve\n\n{_curve(progress)}",
        f"## Size\n\n{_size(job, progress)}",
    ]
    if environment is not None:
        sections.append(f"## Speed\n\n{_speed(job, progress, environment, speed)}")
    sections.append("## Licences\n\n" + "\n".join(f"- {k}: {_prose(v)}" for k, v in about.licences.items()))
    return text + "\n" + "\n\n".join(sections) + "\n"


def _data(about: About) -> str:
    rows = [
        f"| `{_plain(file.name)}` | {file.photos:,} | {f'`{file.sha256}`' if file.sha256 else 'not at hand'} |"
        for file in about.files
    ]
    more = about.file_count - len(about.files)
    rows += [f"| and {more:,} more files | | |"] if more else []
    counts = "; ".join(f"{name}: {photos:,} photos, {captions:,} captions"
                       for name, (photos, captions) in about.counts.items())  # fmt: skip
    table = "\n".join(["| captions from | photos | SHA-256 |", "|---|---|---|", *rows])
    whole = f"All captions with the photos' names and sizes have the SHA-256 `{about.fingerprint}`."
    return f"Used: {counts}. {whole}\n\n{table}"


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "/").replace("`", "'").split())[:100]


def _prose(text: str) -> str:
    """One line that shows as it is written, whatever it holds of Markdown and HTML."""
    return re.sub(r"[\\`*\[\]<>|]", r"\\\g<0>", " ".join(text.split()))


def _curve(progress: Progress) -> str:
    rows = [row for row in progress.rows if row["kind"] == "evaluation"]
    shown = thinned(rows, _MOST_ROWS, progress.best_step)
    heads = columns(rows)
    lines = [f"| {' | '.join(heads.values())} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(_number(row, key) for key in heads)} |" for row in shown]
    return "\n".join(lines)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`CURVE`, with the reward beside the training loss where a score was learnt."""
    if not any("train_reward" in row for row in rows):
        return dict(CURVE)
    heads = list(CURVE.items())
    place = list(CURVE).index("train_loss") + 1
    return dict([*heads[:place], ("train_reward", "reward"), *heads[place:]])


def cell(row: Mapping[str, Any], key: str) -> Any:
    """What a table of evaluations shows of a row; no loss where a score was learnt, it hovers around 0."""
    return None if key == "train_loss" and "train_reward" in row else row.get(key)


def _number(row: Mapping[str, Any], key: str) -> str:
    value = cell(row, key)
    if value is None:
        return ""
    return f"{value:,}" if key == "step" else f"{value:.4g}" if key == "epoch" else f"{value:.3f}"


def thinned(rows: Sequence[dict[str, Any]], most: int, best: int | None) -> list[dict[str, Any]]:
    """At most `most` rows, evenly spread: the first, the last and that of step `best` among them.

    Example:
        >>> [row["step"] for row in thinned([{"step": step} for step in range(100)], 5, 98)]
        [0, 33, 66, 98, 99]
    """
    if len(rows) <= most:
        return list(rows)
    kept = {round(i * (len(rows) - 1) / (most - 2)) for i in range(most - 1)}
    kept |= {i for i, row in enumerate(rows) if row["step"] == best}
    return [rows[i] for i in sorted(kept)]


def _size(job: Job, progress: Progress) -> str:
    assert progress.best_step is not None
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("encoder", job.captioner.encoder), ("decoder", job.captioner.decoder))
        if isinstance(part, nn.Module)
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    size = job.folder.weights_size(progress.best_step) / 1e6
    return (
        f"{sum(counts.values()):,} parameters ({parts}), {len(job.captioner.vocabulary):,} words and signs; "
        f"model.safetensors has {size:,.2f} MB ({job.recipe.weights_dtype})."
    )


def _speed(job: Job, progress: Progress, environment: Mapping[str, str], speed: Speed | None) -> str:
    where = f"{environment['device']}, PyTorch {environment['PyTorch']}, Python {environment['Python']}"
    trained = f"Trained in {duration(progress.seconds)}, evaluations included."
    if speed is None:
        return (
            f"{trained} Captioning wasn't measured, as the validation photos couldn't be read at the end. On: {where}."
        )
    return (
        f"{trained} It captions {speed.per_second:.3g} photos a second, from files to sentences, with "
        f"`{job.recipe.search}`, {_BATCH} at a time (measured on {speed.photos} photos after training). "
        f"On: {where}."
    )
