"""Several at once: commands in one place, and threads with one captioner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from showtell import Captioner, read_dataset
from showtell.testing import tiny_captioner
from test_run import write_photos

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no such locks")]


def begin(*arguments: object) -> subprocess.Popen[str]:
    """Start a command that hears SIGINT, which a shell has its background jobs, and what they start, ignore."""
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    running = "import runpy; runpy.run_module('showtell', run_name='__main__')"
    command = [sys.executable, "-c", f"{hearing}; {running}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    heard = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, said[1]) for process, said in zip(processes, heard, strict=True)]


def test_trainings_in_one_folder_give_way_to_the_first_and_it_ends_as_if_alone(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    settings = ["--set", "epochs=3", "--set", "min_steps=0", "--set", "image_size=64", "--threads", "1"]
    settings += ["--init", "none", "--encoder", "torchvision:squeezenet1_1", "--set", "pretrained=false"]
    ends = finished([begin("train", "--data", photos, "--output", tmp_path / "run", *settings) for _ in range(3)])
    assert sorted(code for code, _ in ends) in ([0, 2, 2], [0, 0, 2], [0, 0, 0])  # a late one finds the run finished
    for code, said in ends:
        assert "Traceback" not in said
        assert code == 0 or "another command that still runs" in said
    assert finished([begin("train", "--data", photos, "--output", tmp_path / "alone", *settings)])[0][0] == 0
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_captionings_into_one_file_leave_every_row_once(tmp_path: Path, photos: list[Path]) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for number in range(24):
        shutil.copyfile(photos[number % len(photos)], album / f"{number:02}.jpg")
    tiny_captioner().save_pretrained(tmp_path / "model")
    command = ["caption", album, "--output", tmp_path / "out.jsonl", "--batch-size", 2]
    ends = finished([begin(*command) for _ in range(3)])
    assert 0 in [code for code, _ in ends]
    for code, said in ends:
        assert "Traceback" not in said
        assert code == 0 or "another command that still runs" in said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(row["image"] for row in rows if "image" in row) == [str(album / f"{n:02}.jpg") for n in range(24)]


def test_an_interrupt_leaves_whole_rows_and_the_same_command_goes_on(tmp_path: Path, photos: list[Path]) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for number in range(40):
        shutil.copyfile(photos[number % len(photos)], album / f"{number:02}.jpg")
    command = ["caption", album, "--output", tmp_path / "out.jsonl", "--batch-size", 2]
    process = begin(*command)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.jsonl").exists() or (tmp_path / "out.jsonl").read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    ((code, said),) = finished([process])
    assert code == 130
    assert "continues where this one ended" in said
    assert "Traceback" not in said
    content = (tmp_path / "out.jsonl").read_bytes()
    assert content.endswith(b"\n")
    before = [json.loads(line) for line in content.splitlines()]
    assert 4 <= len(before) < 40
    assert finished([begin(*command)])[0][0] == 0
    after = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert after[: len(before)] == before
    assert sorted(row["image"] for row in after if "image" in row) == [str(album / f"{n:02}.jpg") for n in range(40)]


@pytest.mark.parametrize("search", ["greedy", "beam:3,length_penalty=0.7"])
def test_sixteen_threads_say_what_one_says(shared: Path, search: str) -> None:
    """But for photos whose two best candidates are nearer than 1e-4."""
    captioner = Captioner.default()
    photos = [record.image for record in list(read_dataset(shared / "flickr8k").split("val"))[:32]]
    alone = [captioner.caption(photo, search=search) for photo in photos]
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        mine = photos[number:] + photos[:number]
        texts = [str(captioner.caption(photo, search=search)) for photo in mine]
        found[number] = texts[len(photos) - number :] + texts[: len(photos) - number]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(16))
    for place, caption in enumerate(alone):
        scores = [candidate.score for candidate in caption.candidates[:2]]
        near = len(scores) == 2 and abs(scores[0] - scores[1]) < 1e-4
        assert near or {texts[place] for texts in found.values()} == {str(caption)}
