"""What is seen of a training between two evaluations: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from typing import Any

import pytest

from showtell.training import StepReport
from showtell.training.meter import Meter


def report(step: int, **values: Any) -> StepReport:
    given = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 100, "seconds": 2.0, "data_share": 0.25}
    given = {**given, "terms": {"words": 2.0}, **values}
    return StepReport(step=step, **given)


class Watch:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def meter(heard: list[str], watch: Watch, **options: Any) -> Meter:
    window: dict[str, float] = options.pop("window", {})
    options = {"every": 0, "show": False, "say": heard.append, "clock": watch, **options}
    return Meter(100, window, **options)


def test_without_a_terminal_a_line_a_minute_shows_life() -> None:
    heard: list[str] = []
    watch = Watch()
    shown = meter(heard, watch)
    for step in range(1, 41):
        watch.now += 4.0
        shown.step(report(step))
    # The first line is due after 60 s; 40 steps of 4 s are 160 s.
    assert heard == [
        "step 15 of 100: loss 2.000, data 25% of the time; at most 6 min left",
        "step 30 of 100: loss 2.000, data 25% of the time; at most 5 min left",
    ]
    shown.tell("an evaluation")
    for step in range(41, 55):
        watch.now += 4.0
        shown.step(report(step))
    assert heard[2:] == ["an evaluation"]  # 56 s later: any line shows life
    shown.close()


def test_a_progress_bar_has_loss_data_share_and_time_left_and_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    watch = Watch()
    shown = meter(heard, watch, show=True)
    for step in range(1, 11):
        watch.now += 100.0
        shown.step(report(step, loss=1.25))
    shown.tell("news")
    shown.close()
    assert heard == ["news"]
    screen = capsys.readouterr().err
    assert "training" in screen
    assert "10/100" in screen
    assert "loss 1.250, data 25%" in screen
    assert "<" in screen.partition("10/100")[2]  # elapsed<remaining


def test_time_left_counts_what_evaluations_took_and_starts_from_the_first_step_of_the_session() -> None:
    watch = Watch()
    shown = meter([], watch, start=60)
    assert shown.left() == ""
    watch.now += 10.0
    shown.step(report(61))
    watch.now += 90.0  # an evaluation
    watch.now += 10.0
    shown.step(report(62))
    assert shown.left() == "; at most 35 min left"  # 110 s for 2 steps, 38 steps are left
    shown.step(report(100))
    assert shown.left() == ""


def test_a_row_is_the_mean_of_its_steps_and_a_window_goes_on_in_the_next_session() -> None:
    window: dict[str, float] = {}
    first = meter([], Watch(), every=4, window=window)
    assert first.step(report(1, loss=1.0, grad_norm=4.0, tokens=10)) is None
    assert first.step(report(2, loss=2.0, grad_norm=0.0, tokens=30)) is None
    second = meter([], Watch(), every=4, window=dict(window), start=2)
    assert second.step(report(3, loss=3.0)) is None
    row = second.step(report(4, loss=4.0, data_share=1.0, learning_rate=0.01))
    assert row == {
        "kind": "steps",
        "step": 4,
        "train_loss": 2.5,
        "grad_norm": 1.5,
        "tokens_per_second": 30.0,  # 240 in 8 s
        "data_share": 0.4375,  # (3 * 0.25 + 1) / 4
        "learning_rate": 0.01,
    }
    assert window == {"steps": 2, "train_loss": 3.0, "grad_norm": 4.0, "tokens": 40, "seconds": 4.0, "waited": 1.0}


def test_a_skipped_step_leaves_rows_that_any_json_reader_takes() -> None:
    shown = meter([], Watch(), every=3)
    shown.step(report(1, grad_norm=float("inf")))
    shown.step(report(2, grad_norm=2.0))
    row = shown.step(report(3, grad_norm=4.0))
    assert row is not None
    assert row["grad_norm"] == 3.0
    shown.step(report(4, grad_norm=float("nan")))
    shown.step(report(5, grad_norm=float("inf")))
    row = shown.step(report(6, grad_norm=float("inf")))
    assert row is not None
    assert "grad_norm" not in row
    assert row["train_loss"] == 2.0


def test_terms_are_in_the_row_where_there_are_several() -> None:
    shown = meter([], Watch(), every=2)
    shown.step(report(1, terms={"words": 2.0, "attention": 1.0}))
    row = shown.step(report(2, terms={"words": 4.0, "attention": 0.0}))
    assert row is not None
    assert (row["term_words"], row["term_attention"]) == (3.0, 0.5)
