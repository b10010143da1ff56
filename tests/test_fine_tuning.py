"""The encoder in stages: rates that fall towards the photo, a later start, batch norms that keep their statistics."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.data import Batch, read_dataset
from showtell.decoders import LSTMDecoder
from showtell.encoders.torchvision import TorchvisionEncoder
from showtell.errors import ArgumentError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features
from showtell.testing import tiny_captioner
from showtell.training import CrossEntropy, Trainer, load_recipe, train, validation
from showtell.training.assemble import make_optimizer
from showtell.training.job import Job, Progress
from showtell.training.run_folder import RunFolder
from showtell.training.stages import trunk_norms, trunk_stages
from test_run import StopError, run_bytes, untimed, write_photos


class NormedEncoder(nn.Module):
    """A trunk of two stages with batch norms, and a head that has one too."""

    image_spec = ImageSpec(8, 8)

    def __init__(self, feature_dim: int = 12) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.low = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
        self.high = nn.Sequential(nn.Conv2d(4, 8, 2, stride=2), nn.BatchNorm2d(8))
        self.project = nn.Sequential(nn.Linear(8, feature_dim), nn.BatchNorm1d(feature_dim, affine=False))

    def trunk(self, images: Tensor) -> Features:
        return Features(self.high(self.low(images)).mean((2, 3)))

    def head(self, features: Features) -> Features:
        return Features(self.project(features.pooled))

    def forward(self, images: Tensor) -> Features:
        return self.head(self.trunk(images))

    def config(self) -> dict[str, Any]:
        return {"feature_dim": self.feature_dim}


def normed_captioner() -> Captioner:
    words = tiny_captioner().vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = NormedEncoder()
        return Captioner(encoder, LSTMDecoder(len(words), 12, embed_dim=8, hidden_dim=8, dropout=0.2), words)


class Photos:
    """Endless batches of random photos with random words, a function of the number."""

    def batch(self, number: int) -> Batch:
        draw = torch.Generator().manual_seed(number)
        tokens = torch.randint(4, 20, (6, 5), generator=draw)
        images = torch.rand(3, 3, 8, 8, generator=draw)
        return Batch(images, tokens, tokens.roll(-1, 1), torch.ones(6, 5), trunk=False)


def all_of(captioner: Captioner) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in captioner.state_dict().items()}


def test_the_stages_of_real_backbones_are_their_blocks_from_the_photo_to_the_head() -> None:
    with torch.device("meta"):
        resnet = TorchvisionEncoder("resnet18", head={"dim": 8})
        transformer = TorchvisionEncoder("vit_b_32")
    trunk = [name for name, _ in resnet.named_parameters() if name.startswith("backbone.")]
    found = trunk_stages(resnet, trunk)
    assert [stage[0].split(".")[1] for stage in found] == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert found[0] == ["backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"]
    assert sorted(name for stage in found for name in stage) == sorted(trunk)
    blocks = trunk_stages(transformer, dict(transformer.named_parameters()))
    assert len(blocks) == 1 + 12
    assert "backbone.conv_proj.weight" in blocks[0]
    assert blocks[12][-2:] == ["backbone.encoder.ln.weight", "backbone.encoder.ln.bias"]
    assert {name for stage in blocks for name in stage} == {name for name, _ in transformer.named_parameters()}


def test_a_trunk_of_one_layer_is_one_stage_and_none_is_none() -> None:
    layer = nn.Linear(2, 2)
    assert trunk_stages(layer, ["weight", "bias"]) == [["weight", "bias"]]
    assert trunk_stages(layer, []) == []


def test_each_stage_learns_at_a_share_of_the_rate_of_the_one_after_it() -> None:
    captioner = normed_captioner()
    recipe = load_recipe("default").changed({"layer_decay": 0.5, "encoder_learning_rate": 8e-4, "learning_rate": 3e-3})
    rates = {id(p): g["lr"] for g in make_optimizer(captioner, recipe).param_groups for p in g["params"]}
    expected = {"encoder.high": 8e-4, "encoder.low": 4e-4}
    for name, parameter in captioner.named_parameters():
        assert rates.pop(id(parameter)) == expected.get(".".join(name.split(".")[:2]), 3e-3), name
    assert rates == {}
    for parameter in captioner.encoder.high.parameters():  # a stage that isn't trained counts all the same
        parameter.requires_grad_(False)
    rates = {id(p): g["lr"] for g in make_optimizer(captioner, recipe).param_groups for p in g["params"]}
    assert rates[id(captioner.encoder.low[0].weight)] == 4e-4
    assert id(captioner.encoder.high[0].weight) not in rates


def test_the_batch_norms_of_the_trunk_are_told_from_those_of_the_head() -> None:
    encoder = normed_captioner().encoder.train()
    assert [id(n) for n in trunk_norms(encoder)] == [id(encoder.low[1]), id(encoder.high[1])]
    assert all(m.training for m in encoder.modules())
    assert not any(m._forward_pre_hooks for m in encoder.modules())
    assert int(encoder.low[1].num_batches_tracked) == 0


def test_a_batch_norm_that_keeps_its_statistics_still_learns_its_weights() -> None:
    captioner = normed_captioner()
    before = all_of(captioner)
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.1)
    trainer = Trainer(captioner, CrossEntropy(), optimizer, keep_eval=trunk_norms(captioner.encoder))
    for _ in islice(trainer.steps(Photos()), 2):
        pass
    changed = {name for name, t in captioner.state_dict().items() if not torch.equal(t, before[name])}
    assert {"encoder.low.1.weight", "encoder.high.1.bias", "encoder.project.1.running_mean"} <= changed
    assert not {f"encoder.{part}.1.running_{what}" for part in ("low", "high") for what in ("mean", "var")} & changed


def run_late(steps: int, stop: int | None = None) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Weights and loss after each step; the trunk joins in at step 2; after `stop` steps all is saved and made anew."""

    def fresh() -> tuple[Captioner, Trainer]:
        captioner = normed_captioner()
        late = [p for name, p in captioner.encoder.named_parameters() if not name.startswith("project")]
        optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2, fused=True)
        return captioner, Trainer(captioner, CrossEntropy(), optimizer, seed=3, late={2: late})

    captioner, trainer = fresh()
    states, losses = [], []
    for number in range(1, steps + 1):
        losses.append(next(trainer.steps(Photos())).loss)
        states.append(all_of(captioner))
        if number == stop:
            buffer = io.BytesIO()
            torch.save([captioner.state_dict(), trainer.state_dict()], buffer)
            captioner, trainer = fresh()
            weights, state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
            captioner.load_state_dict(weights)
            trainer.load_state_dict(state)
    return states, losses


def test_before_its_start_the_trunk_is_frozen_and_then_it_trains() -> None:
    first = all_of(normed_captioner())
    states, _ = run_late(3)
    trunk = [name for name in first if name.startswith(("encoder.low", "encoder.high"))]
    for state in states[:2]:
        assert all(torch.equal(state[name], first[name]) for name in trunk)  # batch norms and their counters too
        assert not torch.equal(state["encoder.project.0.weight"], first["encoder.project.0.weight"])
    assert not any(torch.equal(states[2][name], first[name]) for name in trunk if "running" not in name)
    assert int(states[2]["encoder.low.1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_before_at_and_after_the_start_changes_no_bit(stop: int) -> None:
    whole, losses = run_late(4)
    resumed, again = run_late(4, stop)
    assert losses == again
    assert all(torch.equal(whole[-1][name], t) for name, t in resumed[-1].items())


def test_a_late_start_that_makes_no_sense_is_refused() -> None:
    captioner = normed_captioner()
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.1)
    for late, message in (
        ({3: captioner.parameters()}, "nothing to train at step 0"),
        ({3: nn.Linear(2, 2).parameters()}, "hasn't"),
        ({-1: captioner.encoder.low.parameters()}, "late must be"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Trainer(captioner, CrossEntropy(), optimizer, late=late)
    assert all(p.requires_grad for p in captioner.parameters())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("fine") / "photos")


SETTINGS = {
    "epochs": 2, "min_steps": 4, "photos": 6, "captions": 2, "patience": 0, "search": "greedy", "train_encoder": True,
    "encoder_learning_rate": 0.05, "weights_dtype": "float32", "embed_dim": 8, "hidden_dim": 8,
}  # fmt: skip


def go(photos: Path, output: Path, **settings: Any) -> tuple[Captioner, list[str]]:
    said: list[str] = []
    encoder = normed_captioner().encoder
    train(
        read_dataset(photos), output, init=None, encoder=encoder, overrides={**SETTINGS, **settings}, threads=1,
        show=False, say=said.append,
    )  # fmt: skip
    return Captioner.from_pretrained(output / "checkpoints" / "step-00000004", encoder=NormedEncoder), said


def test_a_recipe_starts_the_trunk_at_an_epoch_and_says_why_there_is_no_cache(photos: Path, tmp_path: Path) -> None:
    begun = all_of(normed_captioner())
    captioner, said = go(photos, tmp_path / "run", encoder_start_epoch=1)
    early = Captioner.from_pretrained(tmp_path / "run" / "checkpoints" / "step-00000002", encoder=NormedEncoder)
    name = "encoder.low.0.weight"
    assert torch.equal(early.state_dict()[name], begun[name])
    assert not torch.equal(captioner.state_dict()[name], begun[name])
    assert torch.equal(captioner.state_dict()["encoder.low.1.running_mean"], begun["encoder.low.1.running_mean"])
    assert any("no feature cache" in line and "from epoch 1 on" in line and "212 weights" in line for line in said)
    free, _ = go(photos, tmp_path / "free", freeze_batch_norm=False)
    assert not torch.equal(free.state_dict()["encoder.low.1.running_mean"], begun["encoder.low.1.running_mean"])


def test_settings_of_the_encoder_that_make_no_sense_are_refused() -> None:
    recipe = load_recipe("default")
    for settings, message in (
        ({"encoder_start_epoch": 25}, "never comes in a run of 25 epochs"),
        ({"encoder_start_epoch": -1}, "encoder_start_epoch"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"freeze_batch_norm": 1}, "freeze_batch_norm"),
    ):
        with pytest.raises(ArgumentError, match=message):
            recipe.changed(settings)


# --- whole runs -------------------------------------------------------------------------------------------------------

EVERYTHING = {
    "min_steps": 10, "photos": 4, "dropout": 0.4, "ema_decay": 0.9, "encoder_start_epoch": 1, "layer_decay": 0.5,
    "flip": 0.5, "crop_area": 0.5, "squash": 1.3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3,
    "save_every_steps": 1, "freeze_batch_norm": False,
}  # fmt: skip


def run(photos: Path, output: Path, **settings: Any) -> None:
    train(
        read_dataset(photos), output, init=None, encoder=normed_captioner().encoder,
        overrides={**SETTINGS, **EVERYTHING, **settings}, threads=1, show=False, say=lambda text: None,
    )  # fmt: skip


def killed_after(step: int, photos: Path, output: Path) -> None:
    """In a process of its own: a run that is killed when the checkpoint of that step is written."""
    save = RunFolder.save

    def save_and_die(self: RunFolder, number: int, *args: Any, **options: Any) -> None:
        save(self, number, *args, **options)
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.save = save_and_die  # type: ignore[method-assign]
    run(photos, output)


def everything_in(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "training.pt", weights_only=True)
    state["progress"].pop("seconds")
    for clock in ("seconds", "waited"):
        state["progress"]["window"].pop(clock, None)
    state["progress"]["rows"] = untimed(state["progress"]["rows"])
    return state | {"file": load_file(folder / "model.safetensors")}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.slow
def test_ten_steps_are_five_a_kill_and_five_to_the_bit_with_everything_on(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, __file__, "5", str(photos), str(tmp_path / "killed")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps = sorted((tmp_path / "killed" / "checkpoints").iterdir())
    assert steps[-1].name == "step-00000005"
    run(photos, tmp_path / "killed")
    last = Path("checkpoints", "step-00000010")
    whole, killed = (everything_in(tmp_path / name / last) for name in ("whole", "killed"))
    assert same(whole, killed)
    assert whole["trainer"]["average"]["count"] == 10
    assert run_bytes(tmp_path / "whole") == run_bytes(tmp_path / "killed")


def test_the_file_of_a_checkpoint_holds_the_average_and_training_pt_the_weights(photos: Path, tmp_path: Path) -> None:
    validated: list[Tensor] = []
    plain = validation.evaluate

    def evaluate(captioner: Captioner, *args: Any, **options: Any) -> Any:
        validated.append(captioner.encoder.project[0].weight.detach().clone())
        return plain(captioner, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "evaluate", evaluate)
        run(photos, tmp_path / "run", epochs=1, encoder_start_epoch=0, ema_decay=0.5)
    found = everything_in(tmp_path / "run" / "checkpoints" / "step-00000010")
    name = "encoder.project.0.weight"
    assert torch.equal(found["file"][name], found["trainer"]["average"]["average"][name])
    assert torch.equal(validated[-1], found["file"][name])
    assert not torch.equal(found["model"][name], found["file"][name])
    mean = "encoder.low.1.running_mean"
    assert torch.equal(found["file"][mean], found["trainer"]["average"]["average"][mean])
    before = everything_in(tmp_path / "run" / "checkpoints" / "step-00000009")
    expected = 0.5 * before["file"][name] + 0.5 * found["model"][name]  # (1 + 9) / (10 + 9) is more than 0.5
    torch.testing.assert_close(found["file"][name], expected)


TWO_PARTS = {"self_critical_epochs": 1, "self_critical_samples": 2}


@pytest.mark.parametrize("ema_decay", [0.9, 0.0])
def test_a_second_part_begins_with_the_best_step_as_it_was_validated(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    seen: list[dict[str, Tensor]] = []
    second = Job.second

    def noted(self: Job, before: int) -> Job:
        seen.append(all_of(self.captioner))
        return second(self, before)

    monkeypatch.setattr(Job, "second", noted)
    monkeypatch.setattr(Progress, "better", lambda self, found: self.best_step is None)
    run(photos, tmp_path / "run", **TWO_PARTS, ema_decay=ema_decay)  # the best step is the one before the trunk trains
    folder = tmp_path / "run" / "checkpoints"
    best = load_file(folder / "step-00000005" / "model.safetensors")
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in best.items())
    trunk = "encoder.low.0.weight"
    last = everything_in(folder / "step-00000015")
    assert not torch.equal(last["model"][trunk], best[trunk])  # its start doesn't come a second time
    assert not ema_decay or last["trainer"]["average"]["count"] == 5


@pytest.mark.parametrize("stop", [10, 12])
def test_a_run_of_two_parts_with_everything_on_continues_to_the_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    run(photos, tmp_path / "whole", **TWO_PARTS)
    save = RunFolder.save

    def save_and_stop(self: RunFolder, number: int, *args: Any, **options: Any) -> None:
        save(self, number, *args, **options)
        if number == stop:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_stop)
        with pytest.raises(StopError):
            run(photos, tmp_path / "stopped", **TWO_PARTS)
    run(photos, tmp_path / "stopped", **TWO_PARTS)
    last = Path("checkpoints", "step-00000015")
    assert same(everything_in(tmp_path / "whole" / last), everything_in(tmp_path / "stopped" / last))
    assert run_bytes(tmp_path / "whole") == run_bytes(tmp_path / "stopped")


def test_a_run_says_when_memory_ran_out_and_when_steps_are_skipped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Captioner.forward

    def forward(self: Captioner, images: Any, tokens: Tensor, **options: Any) -> Any:
        if torch.is_grad_enabled() and len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        forced = real(self, images, tokens, **options)
        calls.append(len(images))
        if len(calls) == 1:
            forced.logits.register_hook(lambda grad: grad * torch.inf)
        return forced

    calls: list[int] = []
    monkeypatch.setattr(Captioner, "forward", forward)
    _, said = go(photos, tmp_path / "run", precision="fp16", encoder_learning_rate=1e-3)
    assert sum("memory ran out" in line and "3 photos at a time" in line for line in said) == 1
    assert sum("skipped, as a float16 gradient" in line and "(1 skipped so far" in line for line in said) == 1
    assert max(calls) == 3


if __name__ == "__main__":
    killed_after(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
