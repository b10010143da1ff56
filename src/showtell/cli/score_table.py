"""Scores as a table for people and as one line of JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..evaluation import Evaluation
from ..evaluation.compare import Comparison, Confidence, Interval
from ..metrics.diversity import Health

__all__ = ["as_json", "as_text"]

_WIDEST = 24  # characters of a name above a column


def as_text(evaluation: Evaluation, intervals: Confidence, comparison: Comparison | None = None) -> str:
    """A table of the scores, a block on the captions' health, and the signature, as lines of text."""
    if comparison is None:
        rows = [["metric", _short(evaluation.name), "95 % interval"]]
        for metric, value in evaluation.scores.corpus.items():
            rows.append([metric, f"{value:.6f}", _interval(intervals.intervals.get(metric), "")])
        shown = [evaluation]
    else:
        shown = [comparison.a, comparison.b]
        rows = [["metric", *(_short(each.name) for each in shown), "difference", "95 % interval", ""]]
        for d in comparison.differences:
            mark = "*" if d.significant else ""
            rows.append(
                [d.metric, f"{d.a:.6f}", f"{d.b:.6f}", f"{d.difference:+.6f}", _interval(d.interval, "+"), mark]
            )
    lines = _aligned(rows)
    if comparison is not None:
        second, first = _plain(comparison.b.name), _plain(comparison.a.name)
        lines.append(f"difference: {second} minus {first}; * where its interval leaves out 0")
    for each in shown:
        title = f"captions of {_plain(each.name)}" if comparison else "captions"
        lines += ["", title, *(f"  {line}" for line in _health(each.health))]
    lines.append("")
    for each in shown:
        lines.append(f"signature of {_plain(each.name)}" if comparison else "signature")
        lines.append(f"  {_plain(str(each.signature))}")
    if comparison is not None and comparison.unlike:
        lines.append("compared all the same (--force); this differs")
        lines += [f"  {_plain(each)}" for each in comparison.unlike]
    return "\n".join(lines)


def as_json(evaluation: Evaluation, intervals: Confidence, comparison: Comparison | None = None) -> str:
    """Everything that `as_text` shows as one line of JSON."""
    value = {**_facts(evaluation), "confidence": {k: _ends(v) for k, v in intervals.intervals.items()}}
    if comparison is not None:
        value["comparison"] = {
            "with": _facts(comparison.a),
            "photos": len(comparison.b.photos),
            "unlike": list(comparison.unlike),
            "differences": {
                d.metric: {
                    "a": d.a,
                    "b": d.b,
                    "difference": d.difference,
                    "interval": _ends(d.interval),
                    "better": d.better,
                    "significant": d.significant,
                }
                for d in comparison.differences
            },
        }
    return json.dumps(value, allow_nan=False)


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "signature": {**evaluation.signature.to_json(), "text": str(evaluation.signature)},
        "scores": dict(evaluation.scores.corpus),
        "health": asdict(evaluation.health),
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _interval(interval: Interval | None, sign: str) -> str:
    return "" if interval is None else f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}"


def _health(health: Health) -> list[str]:
    lines = [
        f"different   {health.unique_ratio:.1%} of {health.captions:,}",
        f"most common {health.most_common_ratio:.1%}: {_plain(health.most_common):.100}",
        f"words       {health.vocabulary:,} different; {health.mean_length:.1f} a caption "
        f"({health.min_length} to {health.max_length})",
        f"flaws       {health.repeated_word_ratio:.1%} repeat a word, {health.bad_ending_ratio:.1%} end badly, "
        f"{health.empty_ratio:.1%} are empty; {health.unknown_ratio:.1%} of the words are <unk>",
    ]
    if health.novelty is not None:
        lines.append(f"new         {health.novelty:.1%} are not among the training captions")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns apart by two spaces: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _short(name: str) -> str:
    """A name for the top of a column: the end of a path says most."""
    plain = _plain(name)
    return plain if len(plain) <= _WIDEST else "..." + plain[3 - _WIDEST :]


def _plain(text: str) -> str:
    """Text that stays on its line and commands no terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
