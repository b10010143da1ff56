"""What the doctor says: checks with their numbers, and a finding for each one that something is wrong with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CODES", "Check", "Diagnosis", "Finding", "Measure", "Outcome"]

CODES = (
    "unreadable",
    "broken-weights",
    "split-leak",
    "wrong-preprocessing",
    "photo-ignored",
    "unknown-words",
    "same-caption",
    "bad-lengths",
    "train-val-gap",
)
"""Every check, causes before what may follow from them; the names stay the same from version to version."""

Outcome = Literal["clean", "found", "unclear", "not run"]
"""Nothing wrong; something wrong; too little evidence for either; the check couldn't be made."""

_SHOWN = 20  # lines of details in the text


@dataclass(frozen=True)
class Measure:
    """One number that a check looked at.

    Example:
        >>> Measure("two photos have the same caption", 0.31, most=0.2).broken
        True

    name: what it is. value: the number itself. least, most: the bounds it should lie within; None where there is none.
    """

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def broken(self) -> bool:
        """Whether the number lies outside its bounds; NaN does."""
        above = self.least is None or self.value >= self.least
        below = self.most is None or self.value <= self.most
        return not (above and below)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Example:
        >>> Finding("unreadable", "1 file can't be read", "1 of 10", "it is lost", "mend it").code
        'unreadable'

    code: one of `CODES`. title: what is wrong, in one line. numbers: what was measured, and the bound that it broke.
    why: why it matters. remedy: what to do. details: the files, pairs or words it is about, one a line."""

    code: str
    title: str
    numbers: str
    why: str
    remedy: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A block of lines."""
        lines = [f"{self.code}: {self.title}"]
        lines += [f"  {label:7}{text}" for label, text in (("found", self.numbers), ("why", self.why))]
        lines.append(f"  {'do':7}{self.remedy}")
        lines += [f"    {_plain(line)}" for line in self.details[:_SHOWN]]
        if len(self.details) > _SHOWN:
            lines.append(f"    ... and {len(self.details) - _SHOWN:,} more (--format jsonl lists all)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Check:
    """What was examined, and with which result, also when all is well.

    Example:
        >>> print(Check("unreadable", "clean", "10 of 10 photos can be read"))
        clean   unreadable           10 of 10 photos can be read

    code: one of `CODES`. result: the numbers in words, or why the check couldn't be made. measures: the same numbers
    for programs. notes: what is worth knowing and no fault, one a line. finding: there where the outcome is "found".
    """

    code: str
    outcome: Outcome
    result: str
    measures: tuple[Measure, ...] = ()
    notes: tuple[str, ...] = ()
    finding: Finding | None = None

    def __str__(self) -> str:
        """One line, and one a note."""
        lines = [f"{self.outcome:8}{self.code:21}{self.result}"]
        lines += [f"{'':29}{_plain(note)}" for note in self.notes[:_SHOWN]]
        if len(self.notes) > _SHOWN:
            lines.append(f"{'':29}... and {len(self.notes) - _SHOWN:,} more (--format jsonl lists all)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a captioner or its data, and all that was looked at.

    Example:
        >>> Diagnosis((Check("unreadable", "clean", "10 of 10 photos can be read"),)).healthy
        True
    """

    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, causes before what may follow from them."""
        return tuple(check.finding for check in self.checks if check.finding is not None)

    @property
    def healthy(self) -> bool:
        """Whether nothing was found; checks that couldn't be made count as nothing."""
        return not self.findings

    def to_rows(self) -> list[dict[str, Any]]:
        """The findings, then the checks, as JSON values: what `--format jsonl` prints, a row a line."""
        found = [{"kind": "finding", **asdict(finding)} for finding in self.findings]
        checks = []
        for check in self.checks:
            row = {"kind": "check", **asdict(check)}
            del row["finding"]
            row["measures"] = [{**measure, "value": _finite(measure["value"])} for measure in row["measures"]]
            checks.append(row)
        return [*found, *checks]

    def __str__(self) -> str:
        """The findings, each a block, then the checks, one a line."""
        count = len(self.findings)
        total = f"{count} finding{'s' * (count != 1)}" if count else "nothing wrong found"
        return "\n\n".join([*map(str, self.findings), "\n".join([*map(str, self.checks), total])])


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if abs(value) < float("inf") else None


def _plain(line: str) -> str:
    """One line, whatever is in a file's name."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else " " for c in line)
