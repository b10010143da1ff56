"""Folders made to do harm: whatever stands in them, loading imports, calls, fetches and writes nothing."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from make_golden import GOLDEN
from showtell import Captioner
from showtell.errors import ComponentError, FormatError, NotFoundError, ShowtellError
from test_importing import Bomb


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A captioner's folder, and traps beside it: no socket opens, no module is imported, no file appears."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(package))
    shutil.copytree(GOLDEN / "attention", tmp_path / "mine")
    return tmp_path / "mine"


def refused(folder: Path, match: str, kind: type[ShowtellError] = ShowtellError) -> None:
    before = sorted(folder.parent.rglob("*"))
    modules = set(sys.modules)
    with pytest.raises(kind, match=match):
        Captioner.from_pretrained(folder)
    assert "evil_module" not in sys.modules
    assert not {name for name in set(sys.modules) - modules if "evil" in name}
    assert sorted(folder.parent.rglob("*")) == before


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_traps_are_sharp(folder: Path) -> None:
    assert Captioner.from_pretrained(folder).vocabulary.words
    with pytest.raises(SystemExit, match="imported"):
        import evil_module  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(pytest.fail.Exception):
        socket.create_connection(("127.0.0.1", 9))


@pytest.mark.parametrize("zipped", [True, False, None])
def test_pickles_named_as_weights_or_words_are_never_opened(folder: Path, zipped: bool | None) -> None:
    target = folder.parent / "run.txt"
    file = folder / "model.safetensors"
    if zipped is None:
        file.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"decoder.w": Bomb(target)}, file, _use_new_zipfile_serialization=zipped)
    refused(folder, "is a pickle", FormatError)
    for name in ("pytorch_model.bin", "training.pt", "model.pkl", "handler.py", "tokenizer.pkl"):
        shutil.copyfile(file, folder / name)
    shutil.copyfile(GOLDEN / "attention" / "model.safetensors", file)
    assert Captioner.from_pretrained(folder).vocabulary.words
    shutil.copyfile(folder / "model.pkl", folder / "tokenizer.json")
    refused(folder, r"tokenizer\.json", FormatError)
    shutil.copyfile(folder / "model.pkl", folder / "config.json")
    refused(folder, r"config\.json", FormatError)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(auto_map={"AutoModel": "evil_module.Evil"}), "must have the keys"),
        (lambda c: c.update(architectures=["evil_module.Evil"]), "must have the keys"),
        (lambda c: c["decoder"].update(auto_map="evil_module.Evil"), "must have the keys"),
        (lambda c: c["decoder"]["config"].update(_target_="evil_module.Evil"), "_target_"),
        (lambda c: c["decoder"].update(name="evil_module:Evil"), "no decoder name"),
        (lambda c: c["decoder"].update(name="evil_module.Evil"), "no decoder name"),
        (lambda c: c["decoder"].update(name="../../evil.v1"), "no decoder name"),
        (lambda c: c["decoder"].update(name="evil/module.v1"), "no decoder name"),
        (lambda c: c["decoder"].update(name="showtell.decoders:evil.v1"), "no decoder name"),
        (lambda c: c["decoder"].update(name="evil-module.v1"), "no decoder named"),
        (lambda c: c["decoder"].update(name=None, **{"class": "evil_module:Evil"}), "decoder="),
        (lambda c: c["decoder"]["config"].update(hidden_dim=10**12), "1..65536"),
        (lambda c: c["decoder"]["config"].update(vocab_size=2_000_000, embed_dim=65536), "don't fit"),
        (lambda c: c["generation"].update(size=10**9), "size"),
        (lambda c: c["generation"].update(max_length=10**9), "max_length"),
        (lambda c: c["generation"].update(name="evil_module:Evil"), "evil_module"),
        (lambda c: c.update(encoder=torchvision_part(backbone="resnet18", weights="DEFAULT")), "weights"),
        (lambda c: c.update(encoder=torchvision_part(backbone="../../evil")), "no classification backbone"),
        (lambda c: c.update(encoder=torchvision_part(backbone="get_model")), "no classification backbone"),
        (lambda c: c.update(encoder=timm_part("hf-hub:evil/model")), "no model"),
        (lambda c: c.update(encoder=timm_part("local-dir:/tmp/evil")), "no model"),
        (lambda c: c.update(encoder=timm_part("hf_hub:evil/model")), "no model"),
        (lambda c: c.update(encoder=timm_part("resnet18", pretrained=True)), "pretrained"),
    ],
)
def test_a_config_that_asks_for_code_files_or_memory_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    edit(folder, change)
    refused(folder, match)


def torchvision_part(**config: Any) -> dict[str, Any]:
    return {"name": "torchvision.v1", "class": "x:Y", "config": config}


def timm_part(model: str, **config: Any) -> dict[str, Any]:
    pytest.importorskip("timm")
    return {"name": "timm.v1", "class": "x:Y", "config": {"model": model, **config}}


def test_json_that_explodes_is_refused(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    for bomb, match in (
        ("[" * 200_000 + "]" * 200_000, "nests|valid JSON|longer"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nests"),
        (config.replace("0.7", "1" * 5000), "valid JSON|finite|length_penalty"),
        (config.replace("0.7", "1e999"), "too large"),
        (config.replace("0.7", "NaN"), "no JSON number"),
        (config[:-2] + ',"format": "showtell.captioner"}', "given twice"),
        (config + " " * 2**21, "longer than|long"),
    ):
        (folder / "config.json").write_text(bomb)
        refused(folder, match, FormatError)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(padding={"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                                    "pad_to_multiple_of": None, "pad_token": "<pad>"}),
        lambda t: t.update(truncation={"max_length": 10**12, "stride": 0, "strategy": "LongestFirst",
                                       "direction": "Right"}),
        lambda t: t["normalizer"]["normalizers"].append({"type": "Replace", "pattern": {"Regex": "(a+)+$"},
                                                         "content": ""}),
        lambda t: t["model"]["vocab"].update({"evil": 10**12}),
        lambda t: t.update(added_tokens=[{"id": 10**12, "content": "x", "special": True}]),
        lambda t: t.update(post_processor={"type": "TemplateProcessing"}),
    ],
)  # fmt: skip
def test_a_tokenizer_that_would_abort_the_process_is_refused(folder: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads((folder / "tokenizer.json").read_bytes())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    refused(folder, "tokenizer.json", FormatError)


def test_weights_that_claim_more_than_there_is_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    for change, match in (
        ({"shape": [2**40], "data_offsets": [0, 2**41]}, "damaged|overlap|gap|bytes"),
        ({"data_offsets": [0, 2**60]}, "make no sense|bytes"),
        ({"data_offsets": [-8, 0]}, "make no sense"),
        ({"dtype": "F64"}, "dtype"),
    ):
        text = json.dumps({**header, name: {**header[name], **change}}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        refused(folder, match, FormatError)
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(folder, "no safetensors file", FormatError)


def test_links_read_what_they_point_to_and_nothing_is_written_through_them(folder: Path) -> None:
    """The Hub's cache is made of links, so they are followed; what is no captioner's file is refused by its content."""
    secret = folder.parent / "secret.txt"
    secret.write_text("password")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(secret)
        with pytest.raises(FormatError) as caught:
            Captioner.from_pretrained(folder)
        assert "password" not in str(caught.value)
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "nowhere")
        refused(folder, "missing", NotFoundError)
        (folder / name).unlink()
        (folder.parent / name).rename(folder / name)
    captioner = Captioner.from_pretrained(folder)
    outside = folder.parent / "outside.json"
    (folder / "config.json").rename(outside)
    (folder / "config.json").symlink_to(outside)
    before = outside.read_bytes()
    captioner.save_pretrained(folder, weights_dtype="float32")
    assert outside.read_bytes() == before
    assert Captioner.from_pretrained(folder).vocabulary == captioner.vocabulary


def test_names_with_parts_of_a_path_do_not_leave_the_folder(folder: Path) -> None:
    from showtell.storage import read_folder, write_folder

    saved = read_folder(folder)
    for name in ("../evil.txt", "/tmp/evil.txt", "a/b", "..", "", "a\0b"):
        with pytest.raises(ShowtellError, match="name"):
            saved.extra(name)
        with pytest.raises(ShowtellError, match="name"):
            write_folder(folder.parent / "new", config=saved.config, tokenizer=saved.tokenizer,
                         tensors=saved.load_tensors(), extra={name: b"x"})  # fmt: skip
    assert sorted(path.name for path in folder.parent.iterdir()) == ["elsewhere", "mine"]


def test_a_checkpoint_to_import_cannot_unpack_files(tmp_path: Path) -> None:
    from showtell.importing.pickles import read_checkpoint

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("../../evil.txt", "x")
        archive.writestr("a/data.pkl", pickle.dumps({"x": 1}, 2))
    assert read_checkpoint(tmp_path / "evil.pt") == {"x": 1}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(FormatError, match="compressed"):
        read_checkpoint(tmp_path / "bomb.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.pt", "evil.pt"]


def test_an_unknown_component_says_what_to_do(folder: Path) -> None:
    edit(folder, lambda c: c["encoder"].update(name="somebodys-encoder.v2"))
    refused(folder, "encoder=MyClass.*register_encoder.*entry\\s+point", ComponentError)
