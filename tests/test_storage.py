"""Storage: the strict reading of a saved captioner, and writes that are whole or don't happen."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from showtell import storage
from showtell.errors import ArgumentError, FormatError, NotFoundError, RunError, ShowtellError
from showtell.storage import (
    SavedFolder,
    TensorInfo,
    check_place,
    create_folder,
    expected_tensors,
    fingerprint,
    json_problem,
    match,
    read_folder,
    saved_tensors,
    scratch_folder,
    write_file,
    write_folder,
)

FSYNC = os.fsync


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing protects against power cuts only, and waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


OURS = ["config.json", "model.safetensors", "tokenizer.json"]


def part(name: str | None = "lstm.v1", **config: Any) -> dict[str, Any]:
    return {"name": name, "class": "package.module:Class", "config": config}


def pieces(value: float = 1.0, **changes: Any) -> dict[str, Any]:
    config = {
        "format": "showtell.captioner",
        "format_version": 1,
        "weights_dtype": "float32",
        "encoder": part("tiny.v1", size=value),
        "decoder": part(layers=1, bias=None),
        "generation": {"search": "greedy"},
    }
    tensors = {
        "encoder.w": torch.full((2, 3), value),
        "decoder.steps": torch.tensor(7),
        "decoder.none": torch.zeros(0, 4),
    }
    return {"config": {**config, **changes}, "tokenizer": f'{{"value": {value}}}', "tensors": tensors}


def value_of(saved: SavedFolder) -> float:
    """The value all files were written with; they must agree."""
    values = {
        saved.config["encoder"]["config"]["size"],
        json.loads(saved.tokenizer)["value"],
        *saved.load_tensors()["encoder.w"].flatten().tolist(),
    }
    if saved.card is not None:
        values.add(float(saved.card.split()[-1]))
    assert len(values) == 1, values
    return float(values.pop())


def card(value: float) -> str:
    return f"---\nlibrary_name: showtell\n---\n{value}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written is read back -------------------------------------------------------------------------------------


def test_a_saved_captioner_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "captioner"
    write_folder(folder, **pieces(2.0), card=card(2.0))
    assert names(folder) == ["README.md", *OURS]
    saved = read_folder(str(folder))
    assert saved.folder == folder
    assert saved.config == pieces(2.0)["config"]
    assert saved.tokenizer == '{"value": 2.0}'
    assert saved.card == card(2.0)
    assert saved.tensors == {
        "encoder.w": TensorInfo("F32", (2, 3)),
        "decoder.steps": TensorInfo("I64", ()),
        "decoder.none": TensorInfo("F32", (0, 4)),
    }
    tensors = saved.load_tensors()
    for name, tensor in pieces(2.0)["tensors"].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    assert value_of(saved) == 2.0
    assert saved.extra("training.pt") is None


def test_the_same_pieces_give_the_same_bytes(tmp_path: Path) -> None:
    first = pieces()
    shuffled = {
        "config": {key: first["config"][key] for key in reversed(first["config"])},
        "tokenizer": first["tokenizer"],
        "tensors": {key: first["tensors"][key] for key in reversed(first["tensors"])},
    }
    shuffled["config"]["decoder"] = {
        "config": {"bias": None, "layers": 1},
        "class": "package.module:Class",
        "name": "lstm.v1",
    }
    write_folder(tmp_path / "a", **first)
    write_folder(tmp_path / "b", **shuffled)
    saved = read_folder(tmp_path / "a")
    write_folder(tmp_path / "c", config=saved.config, tokenizer=saved.tokenizer, tensors=saved.load_tensors())
    for name in OURS:
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abc"}) == 1
    assert fingerprint(**first) == fingerprint(**shuffled)
    assert fingerprint(**first) != fingerprint(**pieces(2.0))
    text = (tmp_path / "a" / "config.json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["format", "format_version", "weights_dtype", "encoder", "decoder", "generation"]


def test_the_weights_are_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", **pieces(3.0))
    with safetensors.safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == ["decoder.none", "decoder.steps", "encoder.w"]
        assert file.get_tensor("encoder.w").tolist() == [[3.0] * 3] * 2


def test_the_newest_file_name_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    create_folder(tmp_path / "step-1", **pieces(), extra={"training.pt": b"state"})
    path = read_folder(tmp_path / "step-1").extra("training.pt")
    assert path is not None
    assert path.read_bytes() == b"state"
    with pytest.raises(ArgumentError, match="exists already"):
        create_folder(tmp_path / "step-1", **pieces(2.0))
    assert value_of(read_folder(tmp_path / "step-1")) == 1.0
    for name in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(ArgumentError, match="plain file name"):
            read_folder(tmp_path / "step-1").extra(name)
        with pytest.raises(ArgumentError, match="name of an extra file"):
            create_folder(tmp_path / "step-2", **pieces(), extra={name: b""})
    with pytest.raises(ArgumentError, match="name of an extra file"):
        create_folder(tmp_path / "step-2", **pieces(), extra={"config.json": b""})
    assert names(tmp_path) == ["step-1"]


def test_what_was_opened_stays_what_it_was_when_the_folder_is_overwritten(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", **pieces(1.0))
    old = read_folder(tmp_path / "a")
    write_folder(tmp_path / "a", **pieces(2.0))
    assert value_of(old) == 1.0
    assert value_of(read_folder(tmp_path / "a")) == 2.0
    weights = old._weights
    del old
    gc.collect()
    assert weights.closed


# --- what can't be read -----------------------------------------------------------------------------------------------


def test_a_missing_folder_a_file_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere doesn't exist; a saved captioner is a folder with config\.json"):
        read_folder(tmp_path / "nowhere")
    write_folder(tmp_path / "a", **pieces())
    with pytest.raises(NotFoundError, match=r"config\.json is a file; give the folder"):
        read_folder(tmp_path / "a" / "config.json")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match=r"tokenizer\.json missing"):
        read_folder(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"config\.json, tokenizer\.json, model\.safetensors missing"):
        read_folder(tmp_path / "empty")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", **pieces())
    (tmp_path / "a" / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "a" / "tokenizer.json")
    with pytest.raises(FormatError, match="regular file"):
        read_folder(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer.json").mkdir()
    with pytest.raises(ShowtellError, match=r"tokenizer\.json"):
        read_folder(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").rmdir()
    (tmp_path / "a" / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(NotFoundError, match="can't be opened"):
        read_folder(tmp_path / "a")


def test_links_are_followed_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    write_folder(tmp_path / "blobs", **pieces())
    (tmp_path / "snapshot").mkdir()
    for name in OURS:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert value_of(read_folder(tmp_path / "snapshot")) == 1.0
    write_folder(tmp_path / "snapshot", **pieces(2.0))
    assert value_of(read_folder(tmp_path / "snapshot")) == 2.0
    assert value_of(read_folder(tmp_path / "blobs")) == 1.0


def edited(**changes: Any) -> str:
    return json.dumps({**pieces()["config"], **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "isn't valid JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ("{}", "no showtell captioner's"),
        ('{"model_type": "bert"}', "no showtell captioner's"),
        (edited(format="showtell.cache"), "no showtell captioner's"),
        (edited(format_version=2), "upgrade showtell"),
        (edited(format_version=10**30), "upgrade showtell"),
        (edited(format_version=0), "no format version 0"),
        (edited(format_version=-1), "no format version -1"),
        (edited(format_version=True), "whole number"),
        (edited(format_version="1"), "whole number"),
        (edited(auto_map={"AutoModel": "evil.Model"}), "must have the keys"),
        (edited(weights_dtype="float64"), "weights_dtype must be one of"),
        (edited(weights_dtype=["float32"]), "weights_dtype must be one of"),
        (edited(encoder=None), "encoder must have the keys"),
        (edited(encoder={**part(), "kwargs": {}}), "encoder must have the keys"),
        (edited(encoder={**part(), "name": 3}), "name of the encoder must be text"),
        (edited(encoder={**part(), "name": "x" * 101}), "name of the encoder must be text"),
        (edited(decoder={**part(), "class": None}), "class of the decoder must be text"),
        (edited(decoder={**part(), "config": []}), "config of the decoder must be an object"),
        (edited(generation=[]), "generation must be an object"),
        (edited().replace('"layers": 1', '"layers": NaN'), "NaN is no JSON number"),
        (edited().replace('"layers": 1', '"layers": 1e999'), "too large"),
        (edited().replace('"layers": 1', '"layers": ' + "9" * 5000), "isn't valid JSON"),
        (edited().replace('"layers": 1', '"layers": 1, "layers": 2'), "'layers' is given twice"),
        (edited(generation={"a": json.loads("[" * 30 + "]" * 30)}), "nests deeper than 20"),
        ('{"a":' * 100_000, "nests deeper than 20"),
        (edited() + " " * 2**20, "longer than 1,048,576 bytes"),
        ("\udcff", "isn't valid JSON"),
    ],
)
def test_a_strange_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_folder(tmp_path / "a", **pieces())
    (tmp_path / "a" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=message):
        read_folder(tmp_path / "a")


def test_an_older_format_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "a", **pieces())
    old = {**pieces()["config"], "format_version": -1, "dtype": "float32"}
    del old["weights_dtype"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(old))

    def rename(config: dict[str, Any]) -> dict[str, Any]:
        assert config["format_version"] == 0
        return {
            **{k: v for k, v in config.items() if k != "dtype"},
            "weights_dtype": config["dtype"],
            "format_version": 1,
        }

    monkeypatch.setattr(storage, "UPGRADES", {-1: lambda c: {**c, "format_version": 0}, 0: rename})
    assert read_folder(tmp_path / "a").config == pieces()["config"]


def safetensors_bytes(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x08\x00\x00", "truncated"),
        (struct.pack("<Q", 10**9) + b"{}", "truncated"),
        (struct.pack("<Q", 2**63) + b"{}", "truncated"),
        (pickle.dumps({"w": 1}), "is a pickle"),
        (b"PK\x03\x04" + b"\0" * 100, "is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (safetensors_bytes(b"\xff\xfe"), "isn't valid JSON"),
        (safetensors_bytes([]), "must hold a JSON object"),
        (safetensors_bytes({"w": 1}), "must have dtype"),
        (safetensors_bytes({"w": {"dtype": "F32"}}), "must have dtype"),
        (safetensors_bytes(entry("F64", (1,)), b"\0" * 8), "has the dtype 'F64'"),
        (safetensors_bytes(entry(["F32"]), b"\0" * 8), "has the dtype"),
        (safetensors_bytes(entry(shape=(-2,)), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(shape=(2.0,)), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(shape=(True, 2)), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(shape=[1] * 8 + [2]), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(offsets=(0, 8, 9)), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(shape=(10**15,)), b"\0" * 8), "make no sense"),
        (safetensors_bytes(entry(shape=(2**40, 2**40)), b"\0" * 8), "isn't its shape"),
        (safetensors_bytes(entry(offsets=(8, 0)), b"\0" * 8), "isn't its shape"),
        (safetensors_bytes(entry(offsets=(4, 12)), b"\0" * 12), "overlap or leave a gap"),
        (safetensors_bytes({**entry(), **{"v": entry()["w"]}}, b"\0" * 8), "overlap or leave a gap"),
        (safetensors_bytes(entry(), b"\0" * 7), "needs? 8 bytes and it holds 7"),
        (safetensors_bytes(entry(), b"\0" * 9), "needs? 8 bytes and it holds 9"),
        (
            safetensors_bytes(json.dumps(entry())[:-1].encode() + b"," + json.dumps(entry())[1:].encode(), b"\0" * 8),
            "twice",
        ),
    ],
)
def test_a_strange_safetensors_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    write_folder(tmp_path / "a", **pieces())
    (tmp_path / "a" / "model.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_folder(tmp_path / "a")


def test_metadata_that_the_header_check_lets_through_is_refused_when_loading(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", **pieces())
    data = safetensors_bytes({"__metadata__": {"format": 3}, **entry()}, b"\0" * 8)
    (tmp_path / "a" / "model.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match="is damaged"):
        read_folder(tmp_path / "a").load_tensors()


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "README.md"):
        write_folder(tmp_path / name, **pieces(), card=card(1.0))
        (tmp_path / name / name).write_bytes(b"\xff")
        with pytest.raises(FormatError, match="isn't UTF-8"):
            read_folder(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_folder_ends_in_a_captioner_or_an_error_of_ours(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    write_folder(folder, **pieces())
    path = folder / data.draw(st.sampled_from(OURS))
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 8)) :]
    try:
        path.write_bytes(content)
        with suppress(ShowtellError):
            read_folder(folder).load_tensors()
    finally:
        path.unlink()
        for left in OURS:
            (folder / left).unlink(missing_ok=True)


# --- tensors of modules -----------------------------------------------------------------------------------------------


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.linear.weight
        self.register_buffer("seen", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.zeros(9), persistent=False)
        self.register_buffer("narrow", torch.ones(2, dtype=torch.float16))


EXPECTED = {
    "decoder.linear.weight": TensorInfo("F16", (2, 3)),
    "decoder.linear.bias": TensorInfo("F16", (2,)),
    "decoder.norm.weight": TensorInfo("F16", (2,)),
    "decoder.norm.bias": TensorInfo("F16", (2,)),
    "decoder.norm.running_mean": TensorInfo("F32", (2,)),
    "decoder.norm.running_var": TensorInfo("F32", (2,)),
    "decoder.norm.num_batches_tracked": TensorInfo("I64", ()),
    "decoder.tied.weight": TensorInfo("F16", (2, 3)),
    "decoder.tied.bias": TensorInfo("F16", (2,)),
    "decoder.seen": TensorInfo("I64", (2,)),
    "decoder.narrow": TensorInfo("F32", (2,)),
}


def test_parameters_take_the_dtype_and_buffers_keep_theirs(tmp_path: Path) -> None:
    module = Parts()
    module.linear.weight.data = torch.randn(3, 2).T
    with torch.device("meta"):
        assert expected_tensors({"decoder": Parts()}, "float16") == EXPECTED
    tensors = saved_tensors({"decoder": module}, "float16")
    write_folder(tmp_path / "a", **{**pieces(), "tensors": tensors})
    saved = read_folder(tmp_path / "a")
    assert saved.tensors == EXPECTED
    match(EXPECTED, saved.tensors, "a")
    loaded = saved.load_tensors()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(loaded[f"decoder.{name}"].double(), tensor.double(), rtol=1e-3, atol=1e-6)
    torch.nn.init.zeros_(module.linear.weight)
    assert tensors["decoder.linear.weight"].count_nonzero() > 0


def test_what_cannot_be_saved_is_named() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="weights_dtype must be one of float32, float16, bfloat16"):
        saved_tensors({"encoder": module}, "int8")
    with torch.no_grad():
        module.weight[0, 0] = 1e6
    with pytest.raises(ArgumentError, match=r'encoder\.weight holds a value too large for float16; .*"bfloat16"'):
        saved_tensors({"encoder": module}, "float16")
    assert saved_tensors({"encoder": module}, "bfloat16")["encoder.weight"].isfinite().all()
    with pytest.raises(ArgumentError, match=r"encoder\.weight is on the meta device"):
        saved_tensors({"encoder": nn.Linear(2, 2, device="meta")}, "float32")
    with pytest.raises(ArgumentError, match=r"encoder\.weight can't be saved: it isn't an ordinary tensor"):
        saved_tensors({"encoder": nn.LazyLinear(2)}, "float32")
    module.register_buffer("waves", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ArgumentError, match=r"encoder\.waves can't be saved: torch\.complex64"):
        saved_tensors({"encoder": module}, "float32")


def test_tensors_that_do_not_match_are_named() -> None:
    f32, i64 = TensorInfo("F32", (2, 3)), TensorInfo("I64", ())
    match({"a": f32}, {"a": f32}, "here")
    with pytest.raises(FormatError, match=r"^here: .*missing: b; surplus: c; a is I64 \[\], not F32 \[2, 3\]$"):
        match({"a": f32, "b": f32}, {"a": i64, "c": f32}, "here")
    with pytest.raises(FormatError, match=r"missing: t0, t1, t2, t3, t4 and 4 more$"):
        match({f"t{n}": f32 for n in range(9)}, {}, "here")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"a": [1, 2.5, None, {"b": "c"}]}, None),
        ([], "must return a dict, not list"),
        ({"a": (1, 2)}, "changes on its way"),
        ({1: 2}, "changes on its way"),
        ({"a": {1, 2}}, "isn't JSON"),
        ({"a": float("nan")}, "isn't JSON"),
        ({"a": torch.zeros(1)}, "isn't JSON"),
    ],
)
def test_a_config_must_survive_json(config: Any, problem: str | None) -> None:
    found = json_problem(config)
    assert found is None if problem is None else found is not None and found.startswith(problem)


def test_pieces_that_could_not_be_read_back_are_not_written(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"config": {**pieces()["config"], "surplus": 1}}, "must have the keys"),
        ({"config": {**pieces()["config"], "generation": {"a": (1,)}}}, "changes on its way"),
        ({"config": {**pieces()["config"], "generation": {"a": "x" * 2**20}}}, "can be read back"),
        ({"tensors": {"encoder.w": torch.zeros(2, dtype=torch.float64)}}, "can't be read back"),
        ({"tokenizer": "\ud800"}, r"tokenizer\.json can't be written as UTF-8"),
        ({"card": "\ud800"}, r"README\.md can't be written as UTF-8"),
    ]
    for change, message in wrong:
        with pytest.raises(ShowtellError, match=message):
            write_folder(tmp_path / "a", **{**pieces(), **change})
    assert names(tmp_path) == []


# --- overwriting ------------------------------------------------------------------------------------------------------


def test_foreign_files_stay_and_an_old_training_state_goes(tmp_path: Path) -> None:
    create_folder(tmp_path / "a", **pieces(), card=card(1.0), extra={"training.pt": b"x" * 100})
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "photos").mkdir()
    write_folder(tmp_path / "a", **pieces(2.0), card=card(2.0))
    assert names(tmp_path / "a") == ["README.md", *OURS[:2], "notes.txt", "photos", "tokenizer.json"]
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert value_of(read_folder(tmp_path / "a")) == 2.0
    assert {path.stat().st_nlink for path in (tmp_path / "a").iterdir() if path.is_file()} == {1}


def test_an_existing_folder_without_a_captioner_is_filled(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    write_folder(tmp_path, **pieces(), card=card(1.0))
    assert names(tmp_path) == ["README.md", *OURS[:2], "notes.txt", "tokenizer.json"]
    assert value_of(read_folder(tmp_path)) == 1.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "bert"}'),
        ("config.json", b"\xff"),
        ("model.safetensors", b"precious"),
        ("tokenizer.json", b"{}"),
        ("training.pt", b"precious"),
        ("README.md", b"# My project"),
        ("config.json", None),
        ("README.md", None),
    ],
)
def test_what_another_program_wrote_is_not_overwritten(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArgumentError, match=name):
        write_folder(tmp_path, **pieces(), card=card(1.0))
    with pytest.raises(ArgumentError, match=name):
        check_place(tmp_path)
    assert names(tmp_path) == [name]
    assert content is None or (tmp_path / name).read_bytes() == content


def test_a_readme_of_somebody_else_stays_when_no_card_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project")
    write_folder(tmp_path, **pieces())
    assert (tmp_path / "README.md").read_text() == "# My project"


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ArgumentError, match="is a file"):
        write_folder(tmp_path / "file", **pieces())
    with pytest.raises(ArgumentError, match="is a file"):
        check_place(tmp_path / "file")
    check_place(tmp_path)
    check_place(tmp_path / "new")
    for write in (write_folder, create_folder):
        with pytest.raises(RunError, match="can't be written"):
            write(tmp_path / "file" / "inside", **pieces())
    assert names(tmp_path) == ["file"]


def test_a_journal_that_is_a_link_is_neither_read_nor_finished(tmp_path: Path) -> None:
    write_folder(tmp_path / "other", **pieces(9.0))
    write_folder(tmp_path / "a", **pieces(1.0))
    (tmp_path / "a" / ".showtell-commit").symlink_to(tmp_path / "other")
    (tmp_path / "a" / ".showtell-new").symlink_to(tmp_path / "other")
    assert value_of(read_folder(tmp_path / "a")) == 1.0
    write_folder(tmp_path / "a", **pieces(2.0))
    assert names(tmp_path / "a") == OURS
    assert value_of(read_folder(tmp_path / "other")) == 9.0


# --- failing and dying at every point ---------------------------------------------------------------------------------


class Killed(BaseException):
    pass


OPERATIONS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync")


class Faults:
    """Counts the calls that change the disk and lets the nth one fail, or it and every later one (a dead process)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, make: Callable[[], BaseException]) -> None:
        self.calls = 0
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), at, make))

    def _wrapped(self, real: Callable[..., Any], at: int, make: Callable[[], BaseException]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            error = make()
            if self.calls == at or (self.calls > at and isinstance(error, Killed)):
                raise error
            return real(*args, **kwargs)

        return faulty


def interrupted(act: Callable[[], object], make: Callable[[], BaseException]) -> Iterator[bool]:
    """Run `act` with a fault at each point in turn; yields whether it got to its end."""
    for at in itertools.count(1):
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, at, make)
            try:
                act()
                done = True
            except (Killed, RunError):
                done = False
        yield done
        if faults.calls < at:
            assert done
            return
    raise AssertionError("never came to an end")


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("make", [Killed, disk_full])
@pytest.mark.parametrize("links", [True, False])
def test_an_overwrite_that_stops_anywhere_leaves_the_old_or_the_new_captioner(
    tmp_path: Path, make: Callable[[], BaseException], links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    write_folder(tmp_path, **pieces(0.0), card=card(0.0), extra={"training.pt": b"0"})
    (tmp_path / "notes.txt").write_text("mine")
    value, seen = 0.0, []

    def write() -> None:
        write_folder(tmp_path, **pieces(value + 1), card=card(value + 1))

    for _ in interrupted(write, make):
        found = value_of(read_folder(tmp_path))
        assert found in (value, value + 1)
        seen.append(found - value)
        assert (read_folder(tmp_path).extra("training.pt") is None) == (found == value + 1)
        value += 2
        write_folder(tmp_path, **pieces(value), card=card(value), extra={"training.pt": b"0"})
        assert names(tmp_path) == ["README.md", *OURS[:2], "notes.txt", "tokenizer.json", "training.pt"]
        assert value_of(read_folder(tmp_path)) == value
    assert seen == sorted(seen)
    assert {0.0, 1.0} == set(seen)
    assert len(seen) > 15


@pytest.mark.parametrize("make", [Killed, disk_full])
def test_a_new_folder_that_stops_anywhere_is_whole_or_absent(tmp_path: Path, make: Callable[[], BaseException]) -> None:
    counter = itertools.count()

    def write() -> None:
        write_folder(tmp_path / f"a{next(counter)}", **pieces())

    for number, _ in enumerate(interrupted(write, make)):
        folder = tmp_path / f"a{number}"
        if folder.exists():
            assert value_of(read_folder(folder)) == 1.0
        write_folder(folder, **pieces(2.0))
        assert value_of(read_folder(folder)) == 2.0
        assert names(tmp_path) == sorted(f"a{n}" for n in range(number + 1))


@pytest.mark.parametrize("make", [Killed, disk_full])
def test_a_file_that_stops_anywhere_is_the_old_or_the_new_one(
    tmp_path: Path, make: Callable[[], BaseException]
) -> None:
    path = tmp_path / "rows.json"
    write_file(path, b"old")
    for done in interrupted(lambda: write_file(path, b"new"), make):
        assert path.read_bytes() in ((b"new",) if done else (b"old", b"new"))
        write_file(path, b"old")
        assert names(tmp_path) == ["rows.json"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "that you may write to"), (errno.EIO, "another place")],
)
def test_a_write_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match=f"a can't be written: {os.strerror(code)}; .*{advice}"):
            write_folder(tmp_path / "a", **pieces())
        with pytest.raises(RunError, match=f"f can't be written: {os.strerror(code)}; .*{advice}"):
            write_file(tmp_path / "f", b"x")
    assert names(tmp_path) == []
    with pytest.raises(RunError, match="make the folder that it lies in first"):
        write_file(tmp_path / "nowhere" / "f", b"x")


def test_files_and_folders_are_synced_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def record(number: int) -> None:
        FSYNC(number)
        synced.append(Path(f"/proc/self/fd/{number}").readlink().name)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", record)
    write_folder(tmp_path / "a", **pieces())
    new = ["config.json", "tokenizer.json", "model.safetensors"]
    assert synced == [*new, ".a.showtell-new", tmp_path.name]
    synced.clear()
    write_folder(tmp_path / "a", **pieces(2.0))
    assert synced == [*new, ".showtell-new", "a", "a", "a"]
    synced.clear()
    write_file(tmp_path / "f", b"x")
    assert synced == [".f.showtell-tmp", tmp_path.name]


def test_writers_of_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for step in range(6):
                write_folder(tmp_path / "a", **pieces(number * 10.0 + step))
                write_file(tmp_path / "f", str(number).encode() * 50)
                value_of(read_folder(tmp_path / "a"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["a", "f"]
    assert len(set((tmp_path / "f").read_bytes())) == 1


KILL_LOOP = """
import os, random, signal, sys, time
sys.path.insert(0, os.path.dirname(sys.argv[3]))
from pathlib import Path
from test_storage import card, names, pieces, value_of
from showtell.storage import read_folder, write_folder
os.fsync = lambda number: None
folder, times, seen = Path(sys.argv[1]), int(sys.argv[2]), set()
write_folder(folder, **pieces(0.0), card=card(0.0))
(folder / "notes.txt").write_text("mine")
chance = random.Random(0)
for _ in range(times):
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        value = value_of(read_folder(folder))
        os.write(tell, b"x")
        while True:
            value += 1
            write_folder(folder, **pieces(value), card=card(value))
    os.read(ready, 1)
    os.close(ready), os.close(tell)
    until = time.monotonic() + chance.uniform(0, 0.02)
    while time.monotonic() < until:
        value_of(read_folder(folder))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen.add(value_of(read_folder(folder)))
assert (folder / "notes.txt").read_text() == "mine"
write_folder(folder, **pieces(-1.0), card=card(-1.0))
print(len(seen), *names(folder))
"""


@pytest.mark.parametrize("times", [10, pytest.param(400, marks=pytest.mark.slow)])
def test_a_writer_killed_at_a_random_moment_leaves_a_whole_captioner(tmp_path: Path, times: int) -> None:
    command = [sys.executable, "-c", KILL_LOOP, str(tmp_path / "a"), str(times), __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    count, *left = done.stdout.split()
    assert int(count) > 1
    assert left == ["README.md", *OURS[:2], "notes.txt", "tokenizer.json"]


def test_a_scratch_folder_is_gone_afterwards() -> None:
    with scratch_folder() as folder:
        write_folder(folder, **pieces())
        assert value_of(read_folder(folder)) == 1.0
    assert not folder.exists()
