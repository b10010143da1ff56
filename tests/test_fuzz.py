"""Inputs of strangers, mutated: see tests/fuzz.py, which is also the command for long runs."""

from __future__ import annotations

import pytest

import fuzz


@pytest.mark.parametrize(("count", "seed"), [(700, 0), pytest.param(6000, 1, marks=pytest.mark.slow)])
def test_mutated_inputs_end_in_a_result_or_an_error_of_ours(count: int, seed: int) -> None:
    report = fuzz.fuzz(count, seed)
    assert report.bad == []
    assert sum(report.ends.values()) == count
    assert report.ends["result"] > count / 20
    assert {"ImageError", "DataError", "FormatError", "ArgumentError", "result"} <= report.ends.keys()


@pytest.mark.slow
def test_what_must_not_happen_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_TRAPS", "1")
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    report = fuzz.fuzz(5, 450)
    said = "\n".join(report.bad)
    for what in ("KeyError", "MemoryError", "the process died", "no end after 1 s", "strange.txt", "stray.txt"):
        assert what in said
