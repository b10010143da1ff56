"""METEOR and SPICE, worked out by their official Java programs as pycocoevalcap brings them (the extra "coco").

Neither is a small formula: METEOR needs a table of paraphrases and WordNet, SPICE a parser. So these are the programs
themselves, or nothing. showtell starts them itself instead of through pycocoevalcap's Python: that one waits for a
dead or silent program for ever, writes into site-packages, and loses its place at unusual characters.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checks import number
from ..errors import ArgumentError, MissingPackageError, RunError
from .jar import JavaProgram, java_problem
from .ngrams import flatten
from .ptb import ptb_tokenize
from .scores import Scores

__all__ = ["COCO_METRICS", "coco_problem", "coco_scores"]

COCO_METRICS = ("METEOR", "SPICE")

_METEOR, _SPICE = "meteor-1.5.jar", "spice-1.0.jar"
_PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_FETCH = 'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as g; g()"'
# SPICE 1.0 was made for Java 8. Its serialiser looks into these, which Java 16 and newer forbid unless told
# otherwise; told by a variable, because Java 8 refuses the option and ignores the variable.
_OPENED = ("lang", "math", "net", "text", "util", "util.concurrent")
_OPENS = " ".join(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED)
_SPICE_SECONDS = 5.0  # of patience a photo: SPICE parses every caption and says nothing until it is done


def coco_problem(metric: str) -> str | None:
    """Say what METEOR or SPICE lacks on this machine and what to do about it; None: nothing.

    Example:
        >>> problem = coco_problem("METEOR")
        >>> problem is None or problem.startswith("METEOR needs")
        True

    Looks for pycocoevalcap, for the program's files and for a `java` that runs; nothing is fetched. Raises
    ArgumentError for any other metric.
    """
    if metric not in COCO_METRICS:
        raise ArgumentError(f"metric must be one of {', '.join(COCO_METRICS)}, not {metric!r:.60}")
    folder = _package()
    if folder is None:
        return f'{metric} needs pycocoevalcap, which isn\'t installed: pip install "showtell[coco]"'
    needed = [folder / "meteor" / _METEOR, folder / "meteor" / "data" / "paraphrase-en.gz"]
    if metric == "SPICE":
        needed = [folder / "spice" / _SPICE]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        return (
            f"{metric} needs {', '.join(missing)}, which pycocoevalcap should have brought; "
            "install it again: pip install --force-reinstall pycocoevalcap==1.2"
        )
    parser = [name for name in _PARSER if not (folder / "spice" / "lib" / name).is_file()]
    if metric == "SPICE" and parser:
        return (
            f"SPICE needs the Stanford parser, which pycocoevalcap doesn't bring: {' and '.join(parser)} in "
            f"{folder / 'spice' / 'lib'}. Fetch it once (several hundred megabytes): {_FETCH}"
        )
    problem = java_problem()
    return f"{metric} needs Java, and {problem}" if problem else None


def coco_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("METEOR",),
    *,
    patience: float = 600.0,
) -> Scores:
    """METEOR or SPICE of one caption a photo, as the official programs give them.

    Example:
        >>> scores = coco_scores(["a dog runs"], [["A dog runs.", "A running dog."]])  # doctest: +SKIP
        >>> scores.corpus["METEOR"], scores.each["METEOR"]  # doctest: +SKIP
        (1.0, (1.0,))

    Args:
        candidates: one caption a photo, as text; `ptb_tokenize` splits them and the references.
        references: at least one caption a photo.
        metrics: of "METEOR" (0..1; the corpus value comes from summed statistics and is not the photos' mean) and
            "SPICE" (0..1; the corpus value is the mean).
        patience: seconds without any answer after which a program is given up, 0.1..86,400; SPICE, which answers
            only at its end, has 5 more a photo.

    Raises:
        ArgumentError: another metric, or captions that make no sense.
        MissingPackageError: pycocoevalcap, Java or SPICE's parser is missing, with what to do (`coco_problem`).
        RunError: the program fails or hangs, with what it said.

    Sources: Denkowski and Lavie 2014 (METEOR 1.5, options `-l en -norm`); Anderson et al. 2016 (SPICE 1.0).
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise ArgumentError(f"metrics must be a list of metrics, not {metrics!r:.60}")
    number("patience", patience, 0.1, 86_400)
    _check(candidates, references)
    for metric in metrics:
        problem = coco_problem(metric)
        if problem:
            raise MissingPackageError(problem)
    ours = [_line(caption) for caption in candidates]
    theirs = [[_line(caption) for caption in captions] for captions in references]
    found = {m: (_meteor if m == "METEOR" else _spice)(ours, theirs, patience) for m in dict.fromkeys(metrics)}
    return Scores(
        corpus={metric: values[-1] for metric, values in found.items()},
        each={metric: tuple(values[:-1]) for metric, values in found.items()},
    )


def _package() -> Path | None:
    """Where pycocoevalcap is installed; importing it isn't needed."""
    spec = find_spec("pycocoevalcap")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if (place / "meteor").is_dir()), None)


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise ArgumentError(f"candidates must be a list with one caption a photo, not {candidates!r:.60}")
    captions, sizes = flatten(references)
    if len(candidates) != len(sizes):
        raise ArgumentError(f"{len(candidates)} candidates for {len(sizes)} photos; give one for each")
    for text in (*candidates, *captions):
        if not isinstance(text, str):
            raise ArgumentError(f"captions must be text, not {text!r:.60}")


def _line(caption: str) -> str:
    """The words of a caption as METEOR's protocol takes them, with none of its separators."""
    return " ".join(ptb_tokenize(caption)).replace("|||", "").replace("  ", " ")


def _meteor(candidates: list[str], references: list[list[str]], patience: float) -> list[float]:
    """METEOR photo by photo, and of the corpus as the last."""
    folder = (_package() or Path()) / "meteor"
    arguments = ["-Xmx2G", "-jar", _METEOR, "-", "-", "-stdio", "-l", "en", "-norm"]
    with JavaProgram("METEOR", arguments, folder, patience=patience) as program:
        pairs = zip(candidates, references, strict=True)
        program.send(" ||| ".join(("SCORE", *theirs, ours)) for ours, theirs in pairs)
        statistics = [_statistics(program.answer(f"photo {i}")) for i in range(len(candidates))]
        program.send([" ||| ".join(("EVAL", *statistics))])
        return [_value("METEOR", program.answer("the last question")) for _ in range(len(candidates) + 1)]


def _statistics(line: str) -> str:
    """METEOR's counts of a photo, checked: it would stumble over anything else only later, and say something odd."""
    try:
        counts = [float(count) for count in line.split()]
    except ValueError:
        counts = []
    if not counts:
        raise RunError(f"METEOR answered {line!r:.200}; the counts of a photo were expected")
    return line


def _spice(candidates: list[str], references: list[list[str]], patience: float) -> list[float]:
    """SPICE (F1 over all propositions) photo by photo, and their mean as the last."""
    photos = enumerate(zip(candidates, references, strict=True))
    rows = [{"image_id": i, "test": ours, "refs": theirs} for i, (ours, theirs) in photos]
    folder = (_package() or Path()) / "spice"
    options = {"JDK_JAVA_OPTIONS": f"{os.environ.get('JDK_JAVA_OPTIONS', '')} {_OPENS}".strip()}
    with tempfile.TemporaryDirectory(prefix="showtell-") as scratch:
        given, results = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        given.write_text(json.dumps(rows), encoding="ascii")
        arguments = ["-Xmx8G", "-jar", _SPICE, str(given), "-out", str(results), "-silent"]
        patience += _SPICE_SECONDS * len(rows)
        with JavaProgram("SPICE", arguments, folder, patience=patience, environment=options) as program:
            program.wait()
        found = _spice_results(results)
    if set(found) != set(range(len(rows))):
        raise RunError(f"SPICE scored other photos than the {len(rows)} it was given; its output can't be used")
    values = [found[i] for i in range(len(rows))]
    return [*values, math.fsum(values) / len(values)]


def _spice_results(path: Path) -> dict[int, float]:
    try:
        results: list[dict[str, Any]] = json.loads(path.read_bytes())
        return {row["image_id"]: _value("SPICE", row["scores"]["All"]["f"]) for row in results}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"SPICE ended without an error but its output can't be read: {error!r:.200}") from error


def _value(metric: str, text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise RunError(f"{metric} answered {text!r:.200}; a score in 0..1 was expected")
    return value
