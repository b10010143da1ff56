"""What tests do once alone and once as one of several processes, which this file is when it is run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.data import Batches, Dataset, FeatureCache, Record, Shard
from showtell.encoders.head import Head
from showtell.errors import ShowtellError
from showtell.evaluation import evaluate, teacher_forced_loss
from showtell.image_spec import ImageSpec
from showtell.metrics import CiderD, DocumentFrequencies
from showtell.protocols import Features
from showtell.ranks import Ranks, joined
from showtell.testing import tiny_captioner
from showtell.training import (
    CrossEntropy,
    DoublyStochastic,
    LinearRise,
    Prefixes,
    ScheduledSampling,
    SelfCritical,
    Term,
    Trainer,
    train,
)
from showtell.training.room import agree, norm_statistics

CAPTIONS = (
    ("a dog runs on the grass", "a small dog", "a dog"),
    ("two men ride a bike on the beach",),
    ("a girl plays in the water", "a girl in a blue shirt"),
    ("a red ball",),
    ("a small dog and a red ball", "two men", "a bike on the beach"),
    ("the grass", "a girl and a dog"),
    ("a girl in a blue shirt plays in the water",),
)
STEPS = 5
SETTINGS = {
    "epochs": 3,
    "min_steps": 6,
    "photos": 3,
    "captions": 2,
    "learning_rate": 2e-2,
    "warmup": 1,
    "patience": 0,
    "search": "greedy",
    "save_every_steps": 1,
    "log_every_steps": 1,
    "ema_decay": 0.9,
}


def records(split: Callable[[int], str] = lambda i: "train") -> list[Record]:
    """Seven photos with one to three captions."""
    generator = np.random.default_rng(3)
    pixels = [generator.integers(0, 256, (36, 40, 3), np.uint8) for _ in CAPTIONS]
    return [Record(f"{i}", pixels[i], CAPTIONS[i], split(i), "made up") for i in range(len(CAPTIONS))]


def images() -> Tensor:
    """The photos of the trainer's tests, (7, 3, 32, 32) float64."""
    return torch.rand(len(CAPTIONS), 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class NormEncoder(nn.Module):
    """A trained head with a batch norm, which counts statistics."""

    image_spec = ImageSpec(32, 32)
    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.project = Head(48, dim=6, batch_norm=True)

    def forward(self, photos: Tensor) -> Features:
        return Features(self.project(nn.functional.adaptive_avg_pool2d(photos, 4).flatten(1)))

    def config(self) -> dict[str, Any]:
        return {}


class Failing:
    """Cross entropy that fails in one process, at its second batch, with more than so many photos."""

    def __init__(self, fails: bool, error: Exception, most: int = 0) -> None:
        self.fails, self.error, self.most = fails, error, most
        self.base = CrossEntropy()
        self.calls = 0

    def weights(self, batch: Any) -> dict[str, float]:
        return self.base.weights(batch)

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        self.calls += 1
        if self.fails and batch.photo_count > self.most and self.calls > 1:
            raise self.error
        return self.base(captioner, batch)


def objective(name: str, batches: Batches) -> Any:
    """The objective of that name."""
    if name.startswith("self-critical"):
        reward = CiderD(DocumentFrequencies.of(batches.references(range(len(CAPTIONS)))))
        return SelfCritical(reward, samples=3, baseline=name.partition(" ")[2], max_length=8)  # type: ignore[arg-type]
    return {
        "cross-entropy": CrossEntropy(0.1),
        "doubly-stochastic": DoublyStochastic(CrossEntropy(), 0.5),
        "scheduled-sampling": ScheduledSampling(DoublyStochastic(CrossEntropy(), 0.5), LinearRise(0.9, 2)),
        "prefixes": Prefixes(CrossEntropy()),
    }[name]


OBJECTIVES = (
    "cross-entropy",
    "doubly-stochastic",
    "prefixes",
    "scheduled-sampling",
    "self-critical others",
    "self-critical greedy",
)


def parts(captioner: Captioner) -> Batches:
    """Batches of three photos, the last one of an epoch of a single photo."""
    pixels = images()
    return Batches(
        records(),
        captioner.vocabulary,
        lambda positions: pixels[list(positions)],
        photos=3,
        captions=2,
        seed=4,
        trunk=False,
    ).with_references()


def trained(
    ranks: Ranks,
    name: str,
    accumulate: int,
    *,
    captioner: Captioner | None = None,
    loss: Any = None,
    adam: bool = False,
) -> dict[str, Any]:
    """Weights and reports after some steps."""
    captioner = (tiny_captioner(decoder="attention-lstm.v1") if captioner is None else captioner).double()
    captioner.decoder.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    batches = parts(captioner)
    found = [p for p in captioner.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(found, lr=1e-2, weight_decay=0.5, eps=1e-4) if adam else None
    trainer = Trainer(
        captioner,
        objective(name, batches) if loss is None else loss,
        optimizer or torch.optim.SGD(found, lr=0.2, momentum=0.5),
        accumulate=accumulate,
        clip_norm=0.5,
        seed=5,
        late={2: list(captioner.encoder.parameters())[-1:]},
        ema_decay=0.8,
        ranks=ranks,
    )
    trainer.captioner.save_pieces = dict  # the idle weight can't be saved
    source = Shard(batches, ranks.rank, ranks.count)
    reports = [asdict(report) for report in islice(trainer.steps(source), STEPS)]
    with trainer.averaged():
        average = [p.detach().clone() for p in captioner.parameters()]
    return {"weights": captioner.state_dict(), "average": average, "reports": reports}


class Written:
    """A writer that keeps the steps that it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def begin(self, run: Any, rows: Sequence[Any]) -> None:
        self.steps += [row["step"] for row in rows]

    def write(self, row: Any) -> None:
        self.steps.append(row["step"])

    def close(self) -> None:
        self.steps.append(-1)


def run(output: Path, **options: Any) -> Any:
    """A small run."""
    written = Written()
    data = options.pop("data", None) or Dataset(tuple(records(lambda i: "val" if i in (0, 4) else "train")))
    heard: list[str] = []
    settings = {**SETTINGS, **options.pop("overrides", {})}
    options = {"init": tiny_captioner(decoder="attention-lstm.v1"), **options}
    result = train(
        data,
        output,
        overrides=settings,
        threads=1,
        show=False,
        say=heard.append,
        log_to=[written],
        **options,
    )
    return {**asdict(result), "heard": heard, "written": written.steps}


def problem(work: Callable[[], Any]) -> str:
    """What a piece of work raises."""
    try:
        work()
    except (ShowtellError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def cached(ranks: Ranks, folder: Path, rows: Sequence[Record], **options: Any) -> list[int]:
    """Features on disk, two photos a chunk; the result is what can't be read."""
    encoder: Any = tiny_captioner().encoder.requires_grad_(False)
    heard: list[str] = []
    built = FeatureCache.build(folder, encoder, rows, batch_size=2, say=heard.append, ranks=ranks, **options)
    return sorted(built.bad)


def validated(ranks: Ranks) -> tuple[Any, float]:
    """Captions, scores and the loss over three batches."""
    captioner = tiny_captioner()
    rows = records()
    scored = evaluate(captioner, rows, search="beam:2", batch_size=3, ranks=ranks)
    pixels = images().float()
    batches = Batches(rows, captioner.vocabulary, lambda at: pixels[list(at)], photos=3, trunk=False)
    loss = teacher_forced_loss(captioner, map(batches.batch, ranks.own(range(batches.per_epoch))), ranks=ranks)
    return [(photo.caption, photo.log_prob) for photo in scored.photos] + [dict(scored.scores.corpus)], loss


def with_norm() -> Captioner:
    """A captioner whose encoder counts statistics."""
    captioner = tiny_captioner()
    words = captioner.vocabulary
    kind: Any = type(captioner.decoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Captioner(NormEncoder(), kind(len(words), 6, embed_dim=8, hidden_dim=8), words)


def one_of_several(rank: int, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Everything that the quick tests ask of several processes."""
    found: dict[str, Any] = {}
    for name in OBJECTIVES:
        for accumulate in (1, 3):
            found[f"{name} {accumulate}"] = trained(ranks, name, accumulate)
    found["adam"] = trained(ranks, "cross-entropy", 2, adam=True)
    memory = Failing(rank == 0, torch.OutOfMemoryError("CUDA out of memory"), most=1)
    found["memory"] = trained(ranks, "cross-entropy", 1, loss=memory)
    found["norm"] = trained(ranks, "cross-entropy", 1, captioner=with_norm())
    norm = nn.BatchNorm1d(2).train()
    norm.running_mean = torch.tensor([1.0, 2.0]) + rank
    norm.num_batches_tracked = torch.tensor(3 + rank)
    agree(ranks, norm_statistics([norm]), 3 if rank == 0 else 1)
    found["agreed"] = [buffer.tolist() for buffer in norm.buffers()]
    failing = Failing(rank == 1, ValueError("no such thing"))
    found["failed"] = problem(lambda: trained(ranks, "cross-entropy", 1, loss=failing))
    found["same"] = problem(lambda: ranks.same({"data": rank, "recipe": 1}, "start all alike"))
    found["cached"] = cached(ranks, folder / "cache", records())
    found["continued"] = cached(ranks, folder / "begun", records())
    broken = [*records()[:3], Record("broken", b"no photo", ("a dog",), "train", "made up"), *records()[4:]]
    found["bad"] = cached(ranks, folder / "bad", broken, skip_bad=True)
    found["refused"] = problem(lambda: cached(ranks, folder / "refused", broken))
    found["validated"] = validated(ranks)
    found["run"] = run(folder / "run")
    found["again"] = run(folder / "run")
    found["begun with one"] = run(folder / "alone-begun")
    others = Dataset(tuple(records(lambda i: "val" if i == rank else "train")))
    found["other data"] = problem(lambda: run(folder / "other", data=others))
    found["other folder"] = problem(lambda: run(folder / f"folder-{rank}"))
    return found


def one_run(output: Path, overrides: dict[str, Any]) -> Any:
    """A run with everything that is random or has a memory: dropout, averaged weights, changed photos."""
    data = Dataset(tuple(records(lambda i: "val" if i in (0, 4) else "train")))
    start = tiny_captioner(decoder="attention-lstm.v1", dropout=0.3)
    return run(output, data=data, init=start, overrides=overrides)


def main(command: str, *given: str) -> None:
    """Be one of several processes.

    all FOLDER: what the quick tests ask, under torchrun; then the second process fails on purpose.
    one RANK COUNT STORE OUTPUT OVERRIDES: a run, with a file to meet at.
    """
    torch.set_num_threads(1)
    if command == "one":
        dist.init_process_group("gloo", init_method=f"file://{given[2]}", rank=int(given[0]), world_size=int(given[1]))
        for line in one_run(Path(given[3]), json.loads(given[4]))["heard"]:
            print(line)
        dist.destroy_process_group()
        return
    folder = Path(given[0])
    dist.init_process_group("gloo")
    with joined(torch.device("cpu")) as ranks:
        rank = ranks.rank
        found = one_of_several(rank, ranks, folder)
    assert dist.is_initialized()
    dist.destroy_process_group()
    for name in ("joined", "joined again"):
        found[name] = run(folder / name)
        assert not dist.is_initialized()
    torch.save(found, folder / f"found-{rank}.pt")
    with joined(torch.device("cpu")) as ranks:
        ranks.meet()
        if rank == 1:
            raise OSError("this process fails on purpose")
        ranks.meet()


if __name__ == "__main__":
    main(*sys.argv[1:])
