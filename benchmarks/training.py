"""How fast training goes: from cached features beside encoding photos again and again, and what the trainer adds.

    python benchmarks/training.py [--quick] [--photos FOLDER] [--device cuda] [--json out.json]

- a: seconds of an epoch three ways, with a frozen ResNet-50 of random weights, the same trainer, decoder and optimizer,
  160 captions a step: features from the cache; every photo decoded and encoded once an epoch, with its five captions;
  every caption a sample of its own, whose photo is decoded and encoded again (the habit of many tutorials). A sample
  of the photos is trained on and the seconds are given for 1,000 photos. Filling the cache is timed too. lstm.v1 is
  the default recipe's (256 numbers a word, tied), unless its name says otherwise.
- b: `Trainer.steps` beside a bare loop (forward, loss, backward, clipping, optimizer) on the same prefetched batches of
  a cache, and beside the same loop on batches that lie in memory.
- c: steps of the default recipe from a cache of 6,000 photos, cross entropy and self-critical; on a GPU also bfloat16
  and torch.compile.

Photos are made up, 500 by 375 pixels, unless --photos names a folder of JPEGs. What is compared in b and c takes turns;
in a each way goes through its sample as a whole, decoding ahead in a thread, the first batch included.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import in_turn, machine, median, publish, ratio, seconds
from PIL import Image
from rehearsal import sentences, words
from torch import nn
from torch.nn import functional as F

from showtell import Batches, Captioner, CiderD, CrossEntropy, FeatureCache, Record, Trainer, Vocabulary, __version__
from showtell.data import CachedInputs, ImageInputs, prefetched
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder
from showtell.encoders import create_untrained
from showtell.metrics import DocumentFrequencies
from showtell.protocols import move
from showtell.training import SelfCritical, load_recipe

PHOTOS, CAPTIONS = 32, 5
SMOOTHING, CLIP, RATE = 0.1, 1.0, 1e-3
PARTS = ["a", "b", "c"]
SMALL = "lstm.v1 of 64"
KINDS: dict[str, tuple[type[nn.Module], dict[str, Any], int, int]] = {  # its options, steps a round and rounds in b
    "lstm.v1": (LSTMDecoder, load_recipe("default").decoder_options(), 3, 6),
    "lstm.v1 of 512, untied": (LSTMDecoder, {}, 3, 4),
    "attention-lstm.v1": (AttentionLSTMDecoder, {}, 1, 5),
    SMALL: (LSTMDecoder, {"embed_dim": 64, "hidden_dim": 64}, 6, 8),
}
STARTED = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """What the cache says while it is filled."""


# --- what is trained --------------------------------------------------------------------------------------------------


def make_photos(folder: Path, count: int) -> list[Path]:
    """Photographs without a camera: noise of several sizes, so that the files are as large as real ones."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        blots = (rng.integers(0, 256, (n * 3, n * 4, 3), np.uint8) for n in (2, 8, 32))
        layers = [np.asarray(Image.fromarray(b).resize((500, 375), Image.Resampling.BICUBIC), float) for b in blots]
        files.append(folder / f"{number}.jpg")
        Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(files[-1], quality=90)
    return files


def make_records(images: list[Any]) -> list[Record]:
    """Five made-up captions for each photo."""
    said = sentences(len(images) * CAPTIONS, np.random.default_rng(0))
    texts = [" ".join(words) for words in said]
    return [
        Record(str(i), image, tuple(texts[i * CAPTIONS : (i + 1) * CAPTIONS]), "train", "made up")
        for i, image in enumerate(images)
    ]


def make_captioner(name: str, vocabulary: Vocabulary, options: argparse.Namespace) -> Captioner:
    """A frozen encoder of random weights, a ResNet-50 unless asked otherwise, and a fresh decoder."""
    torch.manual_seed(0)
    kind, sizes, *_ = KINDS[name]
    looks = kind is AttentionLSTMDecoder
    encoder = create_untrained(options.encoder, height=options.size, grid=looks)
    decoder: Any = kind(len(vocabulary), encoder.feature_dim, **sizes)
    return Captioner(encoder, decoder, vocabulary).to(options.device)


def trained(captioner: Captioner) -> list[nn.Parameter]:
    return [p for p in captioner.parameters() if p.requires_grad]


def make_trainer(captioner: Captioner, objective: Any = None, **options: Any) -> Trainer:
    optimizer = torch.optim.AdamW(trained(captioner), lr=RATE, fused=True)
    return Trainer(captioner, objective or CrossEntropy(SMOOTHING), optimizer, clip_norm=CLIP, **options)


class Sample:
    """The first batches of a source; what lies beyond is not made, though the trainer asks ahead for it."""

    def __init__(self, batches: Any, count: int) -> None:
        self.batches, self.count = batches, count
        self._last: Any = None

    def batch(self, number: int) -> Any:
        if number < self.count:
            self._last = self.batches.batch(number)
        return self._last


# --- a: an epoch three ways -------------------------------------------------------------------------------------------


def epochs(name: str, records: list[Record], vocabulary: Vocabulary, options: argparse.Namespace) -> dict[str, Any]:
    device, size = options.device, options.size
    captioner = make_captioner(name, vocabulary, options)
    spec = captioner.encoder.image_spec
    each = [Record(f"{r.id}#{i}", r.image, (c,), r.split, r.source) for r in records for i, c in enumerate(r.captions)]
    by_photo = Batches(records, vocabulary, ImageInputs(records, spec), photos=PHOTOS, captions=CAPTIONS, trunk=False)
    by_caption = Batches(each, vocabulary, ImageInputs(each, spec), photos=PHOTOS * CAPTIONS, captions=1, trunk=False)
    steps = by_photo.per_epoch
    with tempfile.TemporaryDirectory() as folder:
        caches: list[FeatureCache] = []

        def fill() -> None:
            made = FeatureCache.build(folder, captioner.encoder, records, device=device, show=False, say=silent)
            caches.append(made)

        captioner.encode_pixels(torch.rand(4, 3, size, size))  # what happens once doesn't count
        filling = seconds(fill, device)
        inputs = CachedInputs(caches[0], range(len(records)))
        cached = Batches(records, vocabulary, inputs, photos=PHOTOS, captions=CAPTIONS, trunk=True)

        def go(batches: Batches, count: int) -> float:
            """Seconds of so many steps."""

            def train() -> None:
                with closing(make_trainer(captioner).steps(Sample(batches, count))) as running:
                    for _ in islice(running, count):
                        pass

            return seconds(train, device)

        go(cached, 1)
        from_cache = median([go(cached, steps) for _ in range(1 if options.quick else 3)])
        say(f"{name}: from the cache")
        once = go(by_photo, steps)
        say(f"{name}: once a photo")
        again = go(by_caption, by_caption.per_epoch)
        say(f"{name}: once a caption")
    thousand = 1000 / len(records)
    epochs_20 = (filling + 20 * from_cache) * thousand
    return {
        "photos": len(records),
        "steps": steps,
        "seconds for 1,000 photos": {
            "filling the cache, once": round(filling * thousand, 2),
            "an epoch from the cache": round(from_cache * thousand, 2),
            "an epoch, each photo encoded once": round(once * thousand, 2),
            "an epoch, each photo encoded once a caption": round(again * thousand, 2),
            "20 epochs from the cache, filling included": round(epochs_20, 2),
        },
        "times as fast as once a photo": round(once / from_cache, 1),
        "times as fast as once a caption": round(again / from_cache, 1),
        "20 epochs, filling included, times as fast as once a caption": round(20 * again * thousand / epochs_20, 1),
        "filling, in epochs of once a caption": round(filling / again, 3),
    }


# --- b: what the trainer adds -----------------------------------------------------------------------------------------


def bare(captioner: Captioner, stream: Any) -> Generator[None, None, None]:
    """The loop that everybody writes; only what is computed, no report, no check, no seed."""
    parameters = trained(captioner)
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    captioner.train()
    captioner.encoder.eval()  # type: ignore[attr-defined]
    for given in stream:
        batch = move(given, device)
        optimizer.zero_grad(set_to_none=True)
        logits = captioner(batch.inputs, batch.tokens, trunk=batch.trunk).logits
        losses = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="none", label_smoothing=SMOOTHING
        )
        ((losses * batch.weights.flatten()).sum() / batch.weights.sum()).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        yield


def overhead(name: str, records: list[Record], vocabulary: Vocabulary, options: argparse.Namespace) -> dict[str, Any]:
    device = options.device
    captioner = make_captioner(name, vocabulary, options)
    steps, rounds = (2, 2) if options.quick else KINDS[name][2:]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cache = FeatureCache.build(folder, captioner.encoder, records, device=device, show=False, say=silent)
        inputs = CachedInputs(cache, range(len(records)))
        batches = Batches(records, vocabulary, inputs, photos=PHOTOS, captions=CAPTIONS, trunk=True)
        ready = [batches.batch(number) for number in range(steps * (rounds + 1))]  # all that the others will see
        loops: dict[str, Generator[Any, None, None]] = {
            "trainer": make_trainer(copy.deepcopy(captioner)).steps(batches),
            "bare": bare(copy.deepcopy(captioner), (batch for batch, _ in prefetched(batches))),
            "bare, batches in memory": bare(copy.deepcopy(captioner), ready),
        }
        for loop in loops.values():
            stack.enter_context(closing(loop))

        def some(loop: Generator[Any, None, None]) -> Callable[[], None]:
            def run() -> None:
                for _ in range(steps):
                    next(loop)

            return run

        took = in_turn({key: some(loop) for key, loop in loops.items()}, rounds, device)
    say(f"{name}: trainer and bare loop")
    return {
        "steps a round": steps,
        "rounds": rounds,
        **{f"{key}, ms a step": round(1000 * median(values) / steps, 2) for key, values in took.items()},
        "trainer over bare": ratio(took, "trainer", "bare"),
        "trainer over bare, batches in memory": ratio(took, "trainer", "bare, batches in memory"),
    }


# --- c: the default recipe --------------------------------------------------------------------------------------------


def default_recipe(vocabulary: Vocabulary, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steps from a cache of `count` photos; the features are a ResNet-50's of photos of 32 pixels."""
    device, plan = options.device, load_recipe("default")
    rng = np.random.default_rng(1)
    records = make_records([rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)])
    torch.manual_seed(0)
    encoder = create_untrained(options.encoder, height=32)
    decoder = LSTMDecoder(len(vocabulary), encoder.feature_dim, **plan.decoder_options())
    captioner = Captioner(encoder, decoder, vocabulary).to(device)
    steps, rounds = (1, 1) if options.quick else (2, 5)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        cache = FeatureCache.build(folder, captioner.encoder, records, device=device, show=False, say=silent)
        say(f"a cache of {count:,} photos")
        batches = Batches(
            records,
            vocabulary,
            CachedInputs(cache, range(count)),
            photos=plan.photos,
            captions=plan.captions,
            max_length=plan.max_length,
            trunk=True,
        )
        scored = batches.with_references()
        reward = CiderD(DocumentFrequencies.of(batches.references(range(count))))
        drawing = SelfCritical(reward, samples=plan.self_critical_samples)
        ways: dict[str, tuple[Any, Any, dict[str, Any]]] = {
            "cross entropy": (None, batches, {}),
            "self-critical": (drawing, scored, {}),
        }
        if device.type == "cuda":
            ways |= {
                "cross entropy, bf16": (None, batches, {"precision": "bf16"}),
                "cross entropy, bf16, compiled": (None, batches, {"precision": "bf16", "compiled": True}),
                "self-critical, bf16": (drawing, scored, {"precision": "bf16"}),
            }
        loops = {
            name: stack.enter_context(
                closing(make_trainer(copy.deepcopy(captioner), objective, **chosen).steps(source))
            )
            for name, (objective, source, chosen) in ways.items()
        }

        def some(loop: Any) -> Callable[[], None]:
            return lambda: [next(loop) for _ in range(steps)] and None

        took = in_turn({name: some(loop) for name, loop in loops.items()}, rounds, device)
    say("default recipe")
    rows = plan.photos * plan.captions
    return {
        "photos": count,
        "steps an epoch": batches.per_epoch,
        "steps timed": steps * rounds,
        **{
            name: {
                "ms a step": round(1000 * median(values) / steps, 2),
                "captions_per_s": round(rows * steps / median(values), 1),
                "seconds of an epoch, extrapolated": round(batches.per_epoch * median(values) / steps, 1),
            }
            for name, values in took.items()
        },
        "self-critical over cross entropy": ratio(took, "self-critical", "cross entropy"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of everything: does it all work?")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="JPEGs to train on, the first --count by name")
    parser.add_argument("--count", type=int, help="photos of a and b (default 64; 32 with --quick)")
    parser.add_argument("--encoder", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224, help="pixels that the ResNet-50 sees")
    parser.add_argument("--words", type=int, default=10_000, help="of the vocabulary")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count = options.count or (PHOTOS if options.quick else 2 * PHOTOS)
    vocabulary = Vocabulary.build([" ".join(words()[: options.words - 4])], min_count=1)
    result: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "quick": options.quick,
        "machine": machine(options.device),
        "versions": {"showtell": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "photos": "a folder of JPEGs" if options.photos else "made up, 500 x 375",
        "words": len(vocabulary),
        "encoder": options.encoder,
        "pixels": options.size,
    }
    with tempfile.TemporaryDirectory() as scratch:
        files = sorted(options.photos.rglob("*.jpg"))[:count] if options.photos else make_photos(Path(scratch), count)
        if len(files) < count:
            sys.exit(f"{options.photos} holds {len(files)} JPEGs; --count asks for {count}")
        records = make_records(files)
        if "a" in options.only:
            names = [name for name in KINDS if name != SMALL]
            result["a: an epoch"] = {name: epochs(name, records, vocabulary, options) for name in names}
        if "b" in options.only:
            result["b: trainer and bare loop"] = {name: overhead(name, records, vocabulary, options) for name in KINDS}
    if "c" in options.only:
        result["c: default recipe"] = default_recipe(vocabulary, 64 if options.quick else 6000, options)
    result["took_s"] = round(time.perf_counter() - STARTED)
    publish(result, options.json)


if __name__ == "__main__":
    main()
