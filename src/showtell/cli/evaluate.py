"""`showtell evaluate`: scores of a captioner, or of anybody's predictions, with all that makes them comparable."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..captioner import Captioner
from ..checks import whole
from ..data import Dataset, Record, read_dataset
from ..data.gather import is_file
from ..data.inputs import unreadable
from ..data.records import SPLITS, stop_or_say
from ..errors import ArgumentError, DataError, MissingPackageError, NotFoundError
from ..evaluation import Evaluation, Signature, evaluate, score_predictions
from ..evaluation.compare import compare, confidence
from ..evaluation.matching import match_predictions
from ..evaluation.predictions import read_predictions
from ..evaluation.references import choose_split, read_references
from ..evaluation.report import write_report
from ..evaluation.result import FORMAT
from ..metrics import METRICS
from ..metrics.coco import COCO_METRICS, coco_problem
from ..ranks import Ranks, joined, place
from ..search import parse_search, search_text
from .common import add_format, add_model, device_of, load_model
from .data import add_data_options
from .score_table import as_json, as_text
from .targets import check_target

__all__ = ["add_command"]

_BATCH = 32
_OF_CAPTIONER = ("model", "search", "batch_size", "image_column", "caption_column", "skip_bad")
_OF_PREDICTIONS = ("references", "partial")


@dataclass(frozen=True)
class _Work:
    """What was scored. captioner: that of the result, for the report's pictures."""

    result: Evaluation
    other: Evaluation | None = None
    captioner: Captioner | None = None


def add_command(commands: Any) -> None:
    """Add `evaluate` to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="score a captioner or predictions",
        description="Caption photos whose captions are known and score the result (--data), or score the captions of "
        "any tool (--predictions and --references).",
        epilog="example: showtell evaluate --model runs/holiday --data holiday/captions.csv --report report.html",
    )
    add_model(parser)
    parser.add_argument("--data", metavar="D", help="photos with captions: a folder, a CSV, JSONL or JSON file")
    parser.add_argument(
        "--split",
        choices=(*SPLITS, "all"),
        help="which photos (default: test if the data has one, else val)",
    )
    add_data_options(parser)
    parser.add_argument("--search", metavar="S", help="greedy, beam:3, ... (default: the model's own)")
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"photos at a time (default: {_BATCH})")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows and unreadable photos out")
    parser.add_argument("--predictions", metavar="P", help="captions of any tool: JSONL, COCO results, JSON, CSV, TSV")
    parser.add_argument("--references", metavar="R", help="what people wrote: JSONL, COCO, Karpathy, JSON, CSV, TSV")
    parser.add_argument("--partial", action="store_true", help="score the photos that have both, and count the rest")
    parser.add_argument("--name", metavar="NAME", help="what to call the result (default: the model's or the file's)")
    parser.add_argument(
        "--metrics",
        metavar="M,M",
        help=f"which scores (default: {','.join(METRICS)}; METEOR and SPICE need showtell[coco] and Java)",
    )
    parser.add_argument("--output", metavar="F", help="write the result to F as JSON, for --compare")
    parser.add_argument(
        "--compare",
        metavar="X",
        help='compare with X: a result of --output, another captioner ("default" is the bundled one), or with '
        "--predictions another file of them; differences are positive where X is worse",
    )
    parser.add_argument("--force", action="store_true", help="compare though the signatures differ")
    parser.add_argument("--report", metavar="F", help="write a report for the browser to F, one HTML file")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    _check_combination(options)
    metrics = _metrics(options.metrics)
    output = report = None
    if options.output is not None:
        output = check_target("--output", options.output, ours=_is_result, what="saved result")
    if options.report is not None:
        report = check_target("--report", options.report, ours=_is_report, what="report of showtell")
    named = [
        Path(os.path.normpath(path)).absolute() for path in (options.output, options.report, options.compare) if path
    ]
    if len(set(named)) < len(named):
        raise ArgumentError("--output, --report and --compare must name different files")
    if options.data is not None:
        with joined(device_of(options.device)) as ranks:
            work = _of_data(options, metrics, ranks)
    if place().rank:
        return 0  # the first process says it for all
    if options.data is None:
        work = _of_predictions(options, metrics)
    if len(work.result.photos) == 1 and {"CIDEr-D", "CIDEr"} & set(metrics):
        _say("with one photo CIDEr-D and CIDEr are 0 whatever the caption: words weigh what other photos lack")
    comparison = None if work.other is None else compare(work.other, work.result, force=options.force)
    try:
        print((as_json if options.format == "jsonl" else as_text)(work.result, confidence(work.result), comparison))
    finally:  # the captions may have taken hours: a closed pipe mustn't lose them
        if output is not None:
            work.result.save(output)
            _say(f"the result is in {output}")
    if report is not None:
        write_report(
            report,
            work.result,
            other=work.other,
            comparison=comparison,
            captioner=work.captioner,
            force=options.force,
        )
        _say(f"the report is in {report}")
    return 0


def _say(text: str) -> None:
    if not place().rank:
        print(text, file=sys.stderr, flush=True)


def _is_result(head: bytes) -> bool:
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{" and f'"{FORMAT}"'.encode() in head


def _is_report(head: bytes) -> bool:
    return head.lower().lstrip().startswith(b"<!doctype html") and b": caption scores</title>" in head


def _check_combination(options: argparse.Namespace) -> None:
    """Refuse options that don't belong together."""
    data, predictions = options.data is not None, options.predictions is not None
    if data == predictions:
        raise ArgumentError(
            "evaluate scores either a captioner, with --data D, or predictions, with --predictions P --references R; "
            + ("give one of them" if data else "none of them is given")
        )
    foreign = list(_OF_PREDICTIONS if data else _OF_CAPTIONER)
    given = [name for name in foreign if getattr(options, name) not in (None, False)]
    if predictions and options.device != "auto":
        given.append("device")
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise ArgumentError(f"{flag} belongs to {'--predictions' if data else '--data'}; leave it out")
    if predictions and options.references is None:
        raise ArgumentError("--predictions P needs --references R, the captions that people wrote")
    if options.force and options.compare is None:
        raise ArgumentError("--force belongs to --compare X")
    if options.batch_size is not None:
        whole("--batch-size", options.batch_size, 1, 4096)


def _metrics(text: str | None) -> tuple[str, ...]:
    """The metrics asked for, in the order of tables; raises ArgumentError or MissingPackageError."""
    if text is None:
        return METRICS
    known = {metric.lower(): metric for metric in (*METRICS, *COCO_METRICS)}
    asked = [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name.lower() not in known]
    if unknown:
        raise ArgumentError(f"--metrics: {unknown[0]!r:.60} is none of {', '.join(known.values())}")
    chosen = {known[name.lower()] for name in asked}
    for metric in COCO_METRICS:
        problem = coco_problem(metric) if metric in chosen else None
        if problem:
            raise MissingPackageError(problem)
    return tuple(metric for metric in known.values() if metric in chosen)


def _of_predictions(options: argparse.Namespace, metrics: Sequence[str]) -> _Work:
    saved = None
    if options.compare is not None:
        if os.path.isdir(options.compare):  # noqa: PTH112 - False, not an error, for names that no file can have
            raise ArgumentError(
                f"--compare {options.compare} is a folder; predictions are compared with a file: of predictions, or a "
                "result of --output"
            )
        saved = _saved(options.compare)
        if saved is None and not is_file(Path(options.compare)):
            raise NotFoundError(f"--compare {options.compare}: there is no such file")
    references = read_references(options.references, split=options.split)
    if references.split is not None and options.split is None:
        _say(f"{references.file}: the split {references.split} is scored (--split names another one)")

    def scored(file: str, name: str) -> Evaluation:
        matched = match_predictions(read_predictions(file), references, partial=options.partial, images=options.images)
        for note in matched.notes:
            _say(note)
        return score_predictions(name, matched.photos, metrics=metrics)

    other = saved if saved is not None or options.compare is None else scored(options.compare, options.compare)
    name = options.predictions if options.name is None else options.name
    return _Work(scored(options.predictions, name), other)


def _of_data(options: argparse.Namespace, metrics: Sequence[str], ranks: Ranks) -> _Work:
    search = None if options.search is None else parse_search(options.search)
    saved = None if options.compare is None else _saved(options.compare)
    rival = None if options.compare is None or saved is not None else _rival(options.compare)
    dataset = read_dataset(
        options.data,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )
    for note in dataset.notes:
        _say(note)
    stop_or_say(dataset.problems, options.skip_bad, _say)
    split = choose_split([record.split for record in dataset.records], options.split, str(options.data))
    if ranks.count > 1:
        ranks.same({"data": dataset.fingerprint()}, "give all the same photos and captions")
    records = _readable(dataset.records if split is None else dataset.split(split), options.skip_bad, ranks)
    count = f"{len(records):,} photo{'s' * (len(records) != 1)}"
    hint = "" if options.split else " (--split all scores every photo)"
    _say(f"{options.data}: {count}" + (f" of the split {split}{hint}" if split else ""))
    with ranks.turns(local=True):  # it may be downloaded
        captioner = load_model(options.model, options.device)
    model = "bundled" if options.model is None else options.model
    name = model if options.name is None else options.name
    pairs = [(record.id, record.captions) for record in records]
    mine = Signature.of(pairs, metrics=metrics, search=search_text(search or captioner.search))
    against: Captioner | None = None
    if saved is not None:
        _refuse_unlike(saved.name, saved.signature.differences(mine), options.force)
    elif rival is not None:
        with ranks.turns(local=True):
            against = load_model(None if rival == "default" else rival, options.device)
        theirs = Signature.of(pairs, metrics=metrics, search=search_text(search or against.search))
        _refuse_unlike(rival, theirs.differences(mine), options.force)

    def scored(captioner: Captioner, name: str) -> Evaluation:
        return evaluate(
            captioner,
            records,
            name=name,
            search=search,
            batch_size=options.batch_size or _BATCH,
            metrics=metrics,
            training=_training(dataset),
            show=None if ranks.first else False,
            ranks=ranks,
        )

    other = saved
    if against is not None and rival is not None:
        other = scored(against, "bundled" if rival == "default" else rival)
    return _Work(scored(captioner, name), other, captioner)


def _saved(text: str) -> Evaluation | None:
    """The result that was saved to a file, None if it is no such file."""
    path = Path(text)
    if not is_file(path):
        return None
    with path.open("rb") as file:
        ours = _is_result(file.read(4096))
    return Evaluation.load(path) if ours else None


def _rival(text: str) -> str:
    """The captioner that --compare names."""
    if is_file(Path(text)):
        raise ArgumentError(
            f"--compare {text} is neither a result that --output saved nor a captioner's folder; score predictions "
            "with --predictions and --output first, and compare with that"
        )
    if text == "default" and Path(text).is_dir():
        raise ArgumentError(
            "--compare default is the bundled captioner, but there is a folder of that name too; write ./default for "
            "the folder, or start elsewhere for the bundled one"
        )
    return text


def _refuse_unlike(name: str, differences: Sequence[str], force: bool) -> None:
    """Say before the work what `compare` would refuse after it."""
    if differences and not force:
        raise ArgumentError(
            f"{name!r:.100} wasn't scored like this, so the scores can't be compared: {'; '.join(differences)}. "
            "Use the same data and --search for both, or add --force to compare the photos that both have"
        )


def _readable(records: Sequence[Record], skip_bad: bool, ranks: Ranks) -> list[Record]:
    """The records whose photos can be read: found out now rather than in the middle of the captioning."""
    bad = unreadable(records, show=None if ranks.first else False, ranks=ranks)
    stop_or_say(list(bad.values()), skip_bad, _say)
    if len(bad) == len(records):
        raise DataError("no photo to score is left")
    return [record for number, record in enumerate(records) if number not in bad]


def _training(dataset: Dataset) -> list[str] | None:
    """The captions of the training photos, None where there are none."""
    return [caption for record in dataset.split("train") for caption in record.captions] or None
