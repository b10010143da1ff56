"""Mutated inputs against everything that reads files of strangers; `python tests/fuzz.py --count 20000 --seed 1`.

Each case is a valid file with something changed: bytes, or values of its JSON. It has to end in a result or a
ShowtellError, within 10 seconds and 2 GiB, in a living process, and may write nothing but what it is for. Cases run in
a child process, which the parent watches; a case is known by its number and the seed, so each can be run again
(`--only N`).
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECONDS, MEMORY = 10.0, 2 * 2**30
HERE = Path(__file__).parent


class Target(NamedTuple):
    """One kind of file: valid ones, which mutations suit them, and what reads the file at a path."""

    seeds: list[bytes]
    name: str
    read: Callable[[Path], object]
    structured: bool = False


# --- mutations --------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, 0.5, "", "a" * 3000, "../../x", "/tmp",
    "\x00", "\ud800", "hf-hub:a/b", "local-dir:/", "os:system", "showtell.encoders.torchvision:TorchvisionEncoder",
    [], {}, [[]], {"a": {}}, list(range(300)), "lstm.v1", "float16", 4096, 65536, 2_000_000,
]  # fmt: skip


def odd(dice: random.Random) -> Any:
    return copy.deepcopy(dice.choice(ODD))  # the next mutation may change it


def mutated_bytes(data: bytes, dice: random.Random, others: list[bytes]) -> bytes:
    content = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        place = dice.randrange(len(content) + 1)
        kind = dice.randrange(7)
        if kind == 0 and content:
            content[min(place, len(content) - 1)] = dice.randrange(256)
        elif kind == 1 and content:
            content[min(place, len(content) - 1)] ^= 1 << dice.randrange(8)
        elif kind == 2:
            del content[place : place + dice.choice((1, 2, 8, 200))]
        elif kind == 3:
            content[place:place] = dice.randbytes(dice.choice((1, 4, 50)))
        elif kind == 4:
            del content[place:]
        elif kind == 5:
            content[place:place] = content[place : place + dice.choice((4, 40, 1000))]
        else:
            other = dice.choice(others)
            begin = dice.randrange(len(other) + 1)
            content[place : place + dice.choice((0, 8))] = other[begin : begin + dice.choice((4, 40))]
    return bytes(content)


def mutated_value(value: Any, dice: random.Random) -> Any:
    """A JSON value with one thing changed somewhere."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list) and len(places) < 3000:
                walk(child)

    if isinstance(value, dict | list):
        walk(value)
    if not places:
        return odd(dice)
    parent, key = dice.choice(places)
    kind = dice.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[dice.choice(["x", "weights", "__class__", "auto_map", key + "2"])] = odd(dice)
    elif kind == 2 and isinstance(parent[key], int | float):
        parent[key] = dice.choice([parent[key] + 1, parent[key] * 1000, -parent[key], str(parent[key]), [parent[key]]])
    elif kind == 3:
        for _ in range(dice.choice((1, 30))):
            parent[key] = [parent[key]]
    else:
        parent[key] = odd(dice)
    return value


def _is_json(target: Target, data: bytes) -> bool:
    return target.name.endswith(".safetensors") or data.count(b"\n{") == 0


def mutated(target: Target, dice: random.Random) -> bytes:
    data = dice.choice(target.seeds)
    if target.structured and dice.random() < 0.6 and _is_json(target, data):
        head = b""
        if target.name.endswith(".safetensors"):
            length = struct.unpack("<Q", data[:8])[0]
            head, data = data[8 + length :], data[8 : 8 + length]
        value = json.loads(data)
        for _ in range(dice.choice((1, 1, 2))):
            value = mutated_value(value, dice)
        text = json.dumps(value).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + head if target.name.endswith(".safetensors") else text
    return mutated_bytes(data, dice, target.seeds)


# --- targets ----------------------------------------------------------------------------------------------------------


def targets(place: Path) -> dict[str, Target]:
    """Everything that is fuzzed; `place` is where cases may write."""
    import torch
    from torch import nn

    from showtell import Captioner, read_dataset
    from showtell.evaluation import Evaluation, ScoredPhoto, score_predictions
    from showtell.evaluation.matching import match_predictions
    from showtell.evaluation.predictions import read_predictions
    from showtell.evaluation.references import read_references
    from showtell.image_spec import ImageSpec
    from showtell.images import load_image
    from showtell.importing import import_checkpoint, read_words
    from showtell.training import load_recipe

    warnings.simplefilter("ignore")
    found: dict[str, Target] = {}
    golden = sorted((HERE / "golden" / "1").iterdir())

    def captioner_file(name: str) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            folder = place / f"captioner-{name}"
            if not folder.is_dir():
                shutil.copytree(golden[0], folder)
            for other in ("config.json", "tokenizer.json", "model.safetensors"):
                if other != name:  # the others of the folder that the mutated file may come from
                    shutil.copyfile(golden[path.stat().st_size % len(golden)] / other, folder / other)
            shutil.copyfile(path, folder / name)
            return Captioner.from_pretrained(folder)

        return read

    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        seeds = [(folder / name).read_bytes() for folder in golden]
        found[name] = Target(seeds, name, captioner_file(name), structured=True)

    photo = place / "photo.jpg"
    images = _images()
    photo.write_bytes(images["JPEG"][0])
    sentence = {"raw": "a dog runs", "tokens": ["a", "dog", "runs"]}
    karpathy = {
        "images": [
            {
                "filename": "photo.jpg",
                "split": split,
                "imgid": n,
                "sentids": [n],
                "sentences": [sentence | {"sentid": n}],
            }
            for n, split in enumerate(("train", "val", "test"))
        ]
    }
    coco = {
        "images": [{"id": 1, "file_name": "photo.jpg"}],
        "annotations": [{"id": 5, "image_id": 1, "caption": "a dog"}],
    }
    table = 'image,caption,split\nphoto.jpg,a dog,train\nphoto.jpg,"a, b",val\n'
    lines = b'{"image": "photo.jpg", "caption": "a"}\n{"image": "photo.jpg", "captions": ["b"]}\n'
    texts: dict[str, tuple[list[bytes], bool]] = {
        "captions.csv": ([table.encode(), table.replace("dog", "Köter").encode("utf-16")], False),
        "captions.jsonl": ([lines], False),
        "captions.json": ([json.dumps(karpathy).encode(), json.dumps(coco).encode()], True),
        "captions.token": ([b"photo.jpg#0\ta dog\nphoto.jpg#1\ta cat\n"], False),
    }
    data = place / "data"
    data.mkdir(exist_ok=True)
    shutil.copyfile(photo, data / "photo.jpg")

    def dataset(name: str) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            shutil.copyfile(path, data / name)
            made = read_dataset(data / name)
            return [record.captions for record in made.records]

        return read

    for name, (seeds, structured) in texts.items():
        found[f"dataset {name}"] = Target(seeds, name, dataset(name), structured)

    results = [
        b'[{"image_id": 1, "caption": "a dog"}]',
        b'{"image": "a.jpg", "caption": "a dog"}\n',
        b'{"a.jpg": "a dog"}',
    ]
    found["predictions"] = Target(results, "predictions.json", read_predictions, True)

    def references(path: Path) -> object:
        return match_predictions(read_predictions(path.parent / "ok.json"), read_references(path), partial=True)

    (place / "ok.json").write_bytes(results[0])
    found["references"] = Target(
        [json.dumps(coco).encode(), json.dumps(karpathy).encode()], "references.json", references, True
    )
    score_predictions("mine", [ScoredPhoto("1", "a dog", ("a dog",)), ScoredPhoto("2", "a cat", ("a cat sits",))]).save(
        place / "saved.json"
    )
    found["result"] = Target([(place / "saved.json").read_bytes()], "result.json", Evaluation.load, True)
    recipes = [(HERE.parent / "src/showtell/training/recipes" / f"{name}.toml").read_bytes()
               for name in ("default", "flickr8k-best")]  # fmt: skip
    found["recipe"] = Target(recipes, "recipe.toml", lambda path: load_recipe(path).search)

    # Checkpoints of the tutorials: state dicts, modules whose classes are gone, vocabularies of each protocol.
    from test_importing import MAP
    from tutorial_models import DecoderRNN, Vocabulary

    words = list(MAP)
    (place / "words.json").write_text(json.dumps(MAP))
    class_gone = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    files = []
    for content in (DecoderRNN(19, 4, 4, 1).state_dict(), {"encoder": class_gone, "decoder": class_gone, "epoch": 3}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    pickles = [pickle.dumps(Vocabulary(words), protocol) for protocol in range(5)]
    found["checkpoint"] = Target(files, "checkpoint.pt", lambda path: import_checkpoint([path], place / "words.json"))
    found["pickled words"] = Target(pickles, "vocab.pkl", read_words)
    found["words"] = Target([json.dumps(MAP).encode()], "words2.json", read_words, True)

    spec = ImageSpec(32, 32)
    for kind, seeds in images.items():
        found[f"image {kind}"] = Target(seeds, f"photo.{kind.lower()}", lambda path: load_image(path, spec))
    return found


def _images() -> dict[str, list[bytes]]:
    """A few small pictures in every format that Pillow writes."""
    from PIL import Image

    Image.init()
    found: dict[str, list[bytes]] = {}
    picture = Image.effect_noise((40, 30), 80)
    for kind in sorted(Image.SAVE):
        if kind in ("PDF", "HDF5", "BUFR", "GRIB", "WMF", "PALM", "XBM", "MPO", "DIB"):  # written or read in part only
            continue
        for mode in ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"):
            buffer = io.BytesIO()
            try:
                picture.convert(mode).save(buffer, kind)
            except (OSError, ValueError, KeyError, SystemError, TypeError):
                continue
            found.setdefault(kind, []).append(buffer.getvalue())
    frames = io.BytesIO()
    picture.save(frames, "GIF", save_all=True, append_images=[picture.rotate(90), picture.rotate(180)])
    found["GIF"].append(frames.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    picture.convert("RGB").save(turned, "JPEG", exif=exif)
    found["JPEG"].append(turned.getvalue())
    return found


# --- the child and its watcher ----------------------------------------------------------------------------------------


def chosen(known: dict[str, Target], dice: random.Random) -> str:
    """A target: two times in five a kind of image, else one of the others."""
    images = [name for name in sorted(known) if name.startswith("image")]
    others = sorted(known.keys() - set(images))
    return dice.choice(images if images and dice.random() < 0.4 else others)


def traps() -> dict[str, Target]:
    """Readers that do what must not happen, to see that it is noticed."""

    def fails(path: Path) -> object:
        raise KeyError("not one of ours")

    def takes(path: Path) -> object:
        return bytearray(2 * MEMORY)

    def writes(path: Path) -> object:
        return Path(path.parent, "strange.txt").write_text("x") + Path.home().joinpath("stray.txt").write_text("x")

    does = {"fails": fails, "takes": takes, "writes": writes, "aborts": lambda path: os.abort(),
            "hangs": lambda path: time.sleep(1000)}  # fmt: skip
    return {name: Target([b"x"], "trap", read) for name, read in does.items()}


def run_case(number: int, seed: int, known: dict[str, Target], place: Path) -> str:
    """What became of a case: "result", the name of our error, or what shouldn't have happened."""
    from showtell.errors import ShowtellError

    dice = random.Random(f"{seed}/{number}")
    name = chosen(known, dice)
    target = known[name]
    path = place / target.name
    path.write_bytes(mutated(target, dice))
    try:
        target.read(path)
    except ShowtellError as error:
        return type(error).__name__
    except BaseException as error:  # what the fuzzing is about
        return f"BAD {name}: {type(error).__name__}: {error!s:.300}"
    return "result"


def child(seed: int, numbers: range, place: Path) -> None:
    """Run cases; a line when each begins and when it ends."""
    import showtell  # noqa: F401 - before memory is limited

    known = traps() if os.environ.get("FUZZ_TRAPS") else targets(place)
    allowed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allowed_names = [path.name for path in place.iterdir()] + [target.name for target in known.values()]
    print("ready", json.dumps(allowed_names), flush=True)
    for number in numbers:
        print(f"begin {number}", flush=True)
        print(f"end {number} {run_case(number, seed, known, place)}".replace("\n", " "), flush=True)
    print("done", flush=True)


class Report(NamedTuple):
    """How many cases ended how, and the bad ones."""

    ends: Counter[str]
    bad: list[str]


def fuzz(count: int, seed: int, *, first: int = 0) -> Report:
    """Run `count` cases in children; a new child goes on after one that died or hung."""
    ends: Counter[str] = Counter()
    bad: list[str] = []
    after = first
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "place")
        place.mkdir()
        home = Path(folder, "home")
        home.mkdir()
        meant: set[str] = set()
        while after < first + count:
            after = _watch(seed, range(after, first + count), place, home, ends, bad, meant)
        found = {path.name for path in place.iterdir() if not path.name.startswith("captioner-")}
        bad += [f"BAD: files written: {name}" for name in sorted(found - meant)]
        bad += [f"BAD: written outside: {path}" for path in home.rglob("*") if path.is_file()]
    return Report(ends, bad)


def _watch(
    seed: int, numbers: range, place: Path, home: Path, ends: Counter[str], bad: list[str], meant: set[str]
) -> int:
    """One child's life; returns the number to go on with. `meant`: the files that are to be there, once it has said."""
    command = [sys.executable, __file__, "--child", str(seed), str(numbers.start), str(numbers.stop), str(place)]
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(home), "TMPDIR": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=home, env=environment, bufsize=0)
    assert process.stdout is not None
    running, began, unread = numbers.start - 1, time.monotonic(), b""
    try:
        while True:
            patience = 120.0 if running < numbers.start else SECONDS
            while b"\n" not in unread:
                ready, _, _ = select.select([process.stdout], [], [], max(0.0, began + patience - time.monotonic()))
                if not ready:
                    bad.append(f"case {running}: BAD: no end after {patience:g} s")
                    return running + 1
                piece = os.read(process.stdout.fileno(), 65536)
                unread += piece
                if not piece:
                    break
            first, _, unread = unread.partition(b"\n")
            line = first.decode("utf-8", "replace")
            kind, _, rest = line.partition(" ")
            if kind == "begin":
                running, began = int(rest), time.monotonic()
            elif kind == "end":
                number, _, how = rest.strip().partition(" ")
                ends["bad" if how.startswith("BAD") else how] += 1
                if how.startswith("BAD"):
                    bad.append(f"case {number}: {how}")
            elif kind == "ready" and not meant:
                meant.update(json.loads(rest))
            elif kind == "done":
                process.wait(120)  # torch 2.8 has a temporary file of its own, gone once the process has ended
                return numbers.stop
            elif not line and running < numbers.start:
                raise RuntimeError("the fuzzing process didn't start; see its traceback above")
            elif not line:
                bad.append(f"case {running}: BAD: the process died ({process.wait()})")
                return running + 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="one case, here, with its traceback")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, start, stop, place = options.child
        child(int(seed), range(int(start), int(stop)), Path(place))
        return
    if options.only is not None:
        place = Path(tempfile.mkdtemp())
        dice = random.Random(f"{options.seed}/{options.only}")
        known = targets(place)
        target = known[chosen(known, dice)]
        (place / target.name).write_bytes(mutated(target, dice))
        print(place / target.name)
        print(target.read(place / target.name))
        return
    report = fuzz(options.count, options.seed)
    print(dict(report.ends))
    print("\n".join(report.bad) or "nothing bad")
    sys.exit(bool(report.bad))


if __name__ == "__main__":
    main()
