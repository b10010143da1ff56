"""`train` with the objectives that draw captions: alone, and as a second part of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from showtell.captioner import Captioner
from showtell.errors import ArgumentError, RunError
from showtell.training import TrainResult, load_recipe, train
from showtell.training.alarms import Manner, alarms
from showtell.training.job import Progress
from test_run import (
    BOTH_PARTS,
    SETTINGS,
    StopError,
    evaluations,
    go,
    metrics,
    run_bytes,
    start_captioner,
    untimed,
    write_photos,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def both(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, list[str]]:
    output = tmp_path_factory.mktemp("runs") / "both"
    heard: list[str] = []
    return output, go(photos, output, heard, overrides=BOTH_PARTS), heard


def test_one_run_does_cross_entropy_and_then_self_critical_training(both: Any) -> None:
    output, result, heard = both
    assert result.steps == 12
    rows = evaluations(output)
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    assert [row.get("objective") for row in rows[1:]] == ["cross-entropy"] * 2 + ["self-critical"] * 2
    assert all("train_reward" not in row for row in rows[:3])
    for row in rows[3:]:
        assert 0 < row["train_reward"] < 10
        assert row["train_words"] > 0
        assert row["train_reference_words"] == pytest.approx(3.0, abs=1.0)
        assert 0 <= row["train_bad_endings"] <= 1
        assert row["learning_rate"] <= 1e-4
    assert any("after 6 steps self-critical training begins, from step" in line for line in heard)
    assert any(line.startswith("step 9 of 12: reward ") for line in heard)
    assert (output / "reward-frequencies.bin").is_file()


def test_a_run_of_two_parts_shows_the_reward_in_the_place_of_the_loss(photos: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    go(photos, tmp_path / "run", heard, overrides={**BOTH_PARTS, "log_every_steps": 4})
    steps = [row for row in metrics(tmp_path / "run") if row["kind"] == "steps"]
    assert [row["step"] for row in steps] == [4, 8, 12]
    assert ["train_reward" in row for row in steps] == [False, True, True]  # step 8: the mean of steps 7 and 8
    curve = (tmp_path / "run" / "README.md").read_text().partition("## Curve\n\n")[2].splitlines()
    assert curve[0] == "| step | epoch | training loss | reward | validation loss | CIDEr-D | BLEU-4 |"
    cells = {line.strip("| ").split(" | ")[0]: [cell.strip() for cell in line[1:-1].split("|")] for line in curve[2:7]}
    rows = {row["step"]: row for row in evaluations(tmp_path / "run")}
    assert cells["6"][2:4] == [f"{rows[6]['train_loss']:.3f}", ""]
    assert cells["9"][2:4] == ["", f"{rows[9]['train_reward']:.3f}"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Reward of drawn captions" in report
    assert "step 12 of 12" in report


def test_the_second_part_begins_with_the_best_weights_of_the_first(photos: Path, tmp_path: Path, both: Any) -> None:
    # A rate of 0 leaves them as they are: what the last step holds is what the best step of the first part held.
    still = {**BOTH_PARTS, "self_critical_learning_rate": 0.0, "weight_decay": 0.0, "learning_rate": 0.5}
    go(photos, tmp_path / "run", overrides=still)
    rows = evaluations(tmp_path / "run")
    best = max((row for row in rows[:3] if row["best"]), key=lambda row: row["step"])
    states = {
        step: torch.load(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "training.pt", weights_only=True)
        for step in (best["step"], 12)
    }
    for name, tensor in states[best["step"]]["model"].items():
        assert torch.equal(tensor, states[12]["model"][name])
    assert states[12]["trainer"]["step"] == 6


@pytest.mark.parametrize("moment", ["step 6 ", "self-critical training begins", "step 9 "])
def test_an_interrupted_run_of_two_parts_continues_to_the_same_bytes(
    both: Any, photos: Path, tmp_path: Path, moment: str
) -> None:
    def say(text: str) -> None:
        if moment in text:
            raise StopError

    settings = {**SETTINGS, **BOTH_PARTS}
    with pytest.raises(StopError):
        train(photos, tmp_path / "run", init=start_captioner(), overrides=settings, threads=1, show=False, say=say)
    torch.rand(7)
    again = go(photos, tmp_path / "run", overrides=BOTH_PARTS)
    output, result, _ = both
    assert (again.best_step, again.best_score, again.steps) == (result.best_step, result.best_score, result.steps)
    assert run_bytes(tmp_path / "run") == run_bytes(output)
    assert untimed(metrics(tmp_path / "run")) == untimed(metrics(output))


def test_the_second_part_computes_as_few_photos_at_a_time_as_the_first_had_to(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = Captioner.forward, []

    def forward(self: Captioner, images: Any, tokens: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            tried.append(images.pooled.shape[0])
            if tried[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, images, tokens, **options)

    monkeypatch.setattr(Captioner, "forward", forward)
    heard: list[str] = []
    go(photos, tmp_path / "run", heard, overrides=BOTH_PARTS)
    assert (tried[0], max(tried[1:])) == (4, 2)
    assert sum("memory ran out" in line for line in heard) == 1

    def say(text: str) -> None:
        if "self-critical training begins" in text:
            raise StopError

    settings = {**SETTINGS, **BOTH_PARTS}
    with pytest.raises(StopError):
        train(photos, tmp_path / "again", init=start_captioner(), overrides=settings, threads=1, show=False, say=say)
    tried.clear()
    go(photos, tmp_path / "again", overrides=BOTH_PARTS)
    assert max(tried) == 2
    assert run_bytes(tmp_path / "again") == run_bytes(tmp_path / "run")


def test_a_run_that_stops_early_in_the_first_part_goes_on_to_the_second(photos: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    still = {**BOTH_PARTS, "epochs": 9, "learning_rate": 0.0, "patience": 2, "self_critical_epochs": 1}
    result = go(photos, tmp_path / "run", heard, overrides=still)
    assert result.steps == 6 + 3
    assert any("after 6 steps self-critical training begins, from step 0" in line for line in heard)
    assert not any("stopped early" in line for line in heard)


def test_a_whole_run_may_be_self_critical_from_a_captioner(photos: Path, tmp_path: Path, both: Any) -> None:
    heard: list[str] = []
    settings = {"objective": "self-critical", "epochs": 2, "min_steps": 6, "self_critical_baseline": "greedy"}
    result = go(
        photos,
        tmp_path / "run",
        heard,
        overrides={**settings, "self_critical_samples": 1, "self_critical_bleu": 0.5, "self_critical_length": 0.1},
    )
    assert result.steps == 6
    rows = evaluations(tmp_path / "run")
    assert [row.get("objective") for row in rows] == [None, "self-critical", "self-critical"]
    assert all("train_baseline" in row for row in rows[1:])
    assert result.best_score >= rows[0]["val_cider_d"]
    with pytest.raises(ArgumentError, match="starts from a captioner"):
        go(photos, tmp_path / "new", init=None, encoder=start_captioner().encoder, overrides=settings)
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_whole_run_may_be_scheduled_sampling(photos: Path, tmp_path: Path) -> None:
    for rise in ("linear", "inverse-sigmoid"):
        settings = {"objective": "scheduled-sampling", "sampling": 0.5, "sampling_rise": rise, "epochs": 2}
        go(photos, tmp_path / rise, overrides=settings)
        rows = evaluations(tmp_path / rise)
        assert 0 < rows[1]["train_sampled"] < rows[2]["train_sampled"] <= 0.5
        assert rows[1]["objective"] == "scheduled-sampling"


def test_another_learning_rate_of_the_second_part_is_another_run(photos: Path, both: Any) -> None:
    with pytest.raises(RunError, match=r"recipe\.self_critical_learning_rate: was 0\.0001, is 0\.1"):
        go(photos, both[0], overrides={**BOTH_PARTS, "self_critical_learning_rate": 0.1})


def test_restart_deletes_the_frequencies_of_the_reward_too(photos: Path, tmp_path: Path) -> None:
    go(photos, tmp_path / "run", overrides=BOTH_PARTS)
    go(photos, tmp_path / "run", overrides={"epochs": 1, "min_steps": 0}, restart=True)
    assert not (tmp_path / "run" / "reward-frequencies.bin").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "reinforce"}, "objective must be"),
        ({"self_critical_samples": 1}, "no others to compare with"),
        ({"objective": "self-critical", "self_critical_epochs": 3}, "whole run self-critical"),
        (
            {"objective": "self-critical", "decoder": "attention-lstm.v1", "doubly_stochastic": 1.0},
            "doubly_stochastic goes with",
        ),
        ({"self_critical_baseline": "mean"}, "self_critical_baseline must be"),
        ({"objective": "scheduled-sampling", "prefixes": True}, "prefixes goes with the objective cross-entropy"),
        ({"sampling": 1.5}, "sampling must be"),
        ({"sampling_rise": "steep"}, "sampling_rise must be"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_recipe("default").changed(settings)


def test_a_recipe_file_names_the_settings_without_the_sections_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[self_critical]\nepochs = 4\nbaseline = "greedy"\nlearning_rate = 2e-4\n')
    plan = load_recipe(file)
    assert (plan.self_critical_epochs, plan.self_critical_baseline) == (4, "greedy")
    assert (plan.self_critical_learning_rate, plan.learning_rate) == (2e-4, 2e-3)
    assert plan.epochs == 25
    file.write_text(plan.toml())
    assert load_recipe(file) == plan
    file.write_text("[self_critical]\nsample = 4\n")
    with pytest.raises(ArgumentError, match=r"\[self_critical\] has no setting 'sample'; did you mean 'samples'"):
        load_recipe(file)


def test_alarms_go_off_for_short_captions_and_for_bad_endings_and_say_what_to_do() -> None:
    start = Manner(words=9.0, bad_endings=0.01)
    assert alarms("validation", Manner(8.0, 0.02), start, 11.0) == []
    (short,) = alarms("validation", Manner(6.7, 0.0), start, 11.0)
    assert "6.7 words on average: at the start they had 9.0, the references have 11.0" in short
    assert "self_critical_length" in short
    (against_people,) = alarms("drawn", Manner(6.5, 0.0), Manner(6.6, 0.0), 11.0)
    assert "drawn captions: too short" in against_people
    assert alarms("validation", Manner(4.0, 0.0), Manner(4.0, 0.0), 11.0) == []  # a start that says little
    assert alarms("validation", Manner(5.0, 0.0), Manner(4.0, 0.0), 11.0) == []
    assert len(alarms("validation", Manner(3.9, 0.0), Manner(4.0, 0.0), 11.0)) == 1
    (bad,) = alarms("validation", Manner(9.0, 0.031), start, 11.0)
    assert "3.1% end badly" in bad
    assert "end token" in bad
    assert len(alarms("validation", Manner(1.0, 0.9), start, 11.0)) == 2


def test_alarms_are_said_and_written_down(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from showtell.training import phases

    # A reward that loves the empty caption and nothing else.
    monkeypatch.setattr(
        phases, "CiderD", lambda frequencies: lambda captions, references: [-float(len(c)) for c in captions]
    )
    heard: list[str] = []
    settings = {
        "objective": "self-critical",
        "epochs": 2,
        "min_steps": 60,
        "warmup": 0,
        "self_critical_learning_rate": 2e-2,
        "search": "greedy",
    }
    go(photos, tmp_path / "run", heard, overrides=settings)
    assert any(line.startswith("alarm, validation captions: too short, 0.0 words") for line in heard)
    assert any("too short" in line for line in evaluations(tmp_path / "run")[-1]["alarms"])


def test_progress_without_the_newer_values_still_loads() -> None:
    assert Progress(best_step=3, rows=[]).part == 1
