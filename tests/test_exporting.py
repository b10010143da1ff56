"""Exported captioners say what the captioner says."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from showtell import Captioner, Features, read_dataset
from showtell.cli import main
from showtell.decoders import AdaptiveLSTMDecoder, AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder
from showtell.encoders.torchvision import TorchvisionEncoder
from showtell.errors import ArgumentError, FormatError, MissingPackageError, NotFoundError
from showtell.exporting import export, load_onnx
from showtell.rows import repeat_rows
from showtell.testing import tiny_captioner

SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("lstm", "lstm-every-step", "adaptive", "transformer")]
KINDS = ["attention", *SLOW]


def captioner(kind: str) -> Captioner:
    """A captioner with that decoder, random, that says several things."""
    return next(one for one in (drawn(kind, seed) for seed in range(50)) if len(set(texts(one))) > 2)


def texts(of: Captioner) -> list[str]:
    return [each.text for each in of.caption(photos())]


def drawn(kind: str, seed: int) -> Captioner:
    torch.manual_seed(seed)
    vocabulary = tiny_captioner().vocabulary
    encoder = TorchvisionEncoder("squeezenet1_1", height=64, grid=True, head={"dim": 12, "batch_norm": True})
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "feature_dim": 12, "hidden_dim": 16}
    looking: dict[str, Any] = {**sizes, "embed_dim": 12, "attention_dim": 8}
    decoder: Any = {
        "lstm": lambda: LSTMDecoder(**sizes, embed_dim=12, layers=2),
        "lstm-every-step": lambda: LSTMDecoder(**sizes, embed_dim=12, image="every-step"),
        "attention": lambda: AttentionLSTMDecoder(**looking, gate="vector", tied=True),
        "adaptive": lambda: AdaptiveLSTMDecoder(**looking),
        "transformer": lambda: TransformerDecoder(**sizes, heads=2, layers=2, feedforward_dim=16),
    }[kind]()
    with torch.no_grad():
        for name, parameter in [*decoder.named_parameters(), *encoder.projection.named_parameters()]:
            if parameter.ndim > 1 and "norm" not in name:
                parameter.uniform_(-0.9, 0.9)
    return Captioner(encoder, decoder, vocabulary, search="beam:3,max_length=12").eval()


def photos() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 1, 1, generator=generator).expand(3, 70, 50 + i).clone() for i in range(7)]


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_says_the_same_with_every_search_and_any_number_of_photos(kind: str, tmp_path: Path) -> None:
    whole = captioner(kind)
    export(whole, tmp_path / "out")
    found = load_onnx(tmp_path / "out", threads=1)
    for search in (None, "greedy", "diverse:4,groups=2", "sample:2,seed=3"):
        theirs, ours = found.caption(photos(), search=search), whole.caption(photos(), search=search)
        assert [each.text for each in theirs] == [each.text for each in ours]
        assert [each.log_prob for each in theirs] == pytest.approx([each.log_prob for each in ours], abs=1e-3)
    assert found.caption(photos()[0]).text == texts(whole)[0]
    if kind == "transformer":
        with pytest.raises(ArgumentError, match="at most 20 tokens"):
            found.caption(photos(), search="greedy:max_length=21")
    score, same = (each.score(photos()[:2], [" ".join(whole.vocabulary.words[4:8])] * 2) for each in (found, whole))
    assert [s.log_prob for s in score] == pytest.approx([s.log_prob for s in same], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_programs_say_the_same_step_by_step(kind: str, tmp_path: Path) -> None:
    whole = captioner(kind)
    if kind == "transformer" and torch.__version__.startswith("2.8."):
        with pytest.raises(ArgumentError, match=r"torch 2.9 can"):
            export(whole, tmp_path / "out", format="torch", max_length=5)
        return
    export(whole, tmp_path / "out", format="torch", max_length=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # of torch 2.9 to 2.11
        encode, step = (torch.export.load(tmp_path / "out" / f"{name}.pt2").module() for name in ("encoder", "step"))
    facts = json.loads((tmp_path / "out" / "exported.json").read_bytes())
    images = torch.rand(2, 3, 64, 64)
    decoder: Any = whole.decoder
    with torch.no_grad():
        memory, state = encode(images)
        assert (list(memory), list(state)) == (facts["memory"], facts["state"])
        mine = decoder.prepare(whole.encoder(images))
        ours = decoder.initial_state(mine, 5)
        memory, state, ours = (repeat_rows(rows, 3) for rows in (memory, state, ours))
        for tokens in torch.randint(4, decoder.vocab_size, (5, 6), generator=torch.Generator().manual_seed(0)):
            logits, state = step(tokens, state, memory)
            expected, ours = decoder.step(tokens, ours, mine)
            torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_int8_is_smaller_and_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = tiny_captioner().vocabulary
    encoder = TorchvisionEncoder("squeezenet1_1", height=64)
    decoder = LSTMDecoder(len(words), 512, embed_dim=256, hidden_dim=256, layers=2, tied=True)
    whole = Captioner(encoder, decoder, words).eval()
    assert main_export(whole, tmp_path, "--int8") == 0
    export(whole, tmp_path / "float")
    large, small = ((tmp_path / name / "step.onnx").stat().st_size for name in ("float", "out"))
    assert small < 0.35 * large
    images = torch.rand(4, 3, 64, 64)
    tokens = torch.tensor([[1, 5, 6], [1, 7, 2], [1, 4, 4], [1, 8, 9]])
    theirs, ours = (each(images, tokens).logits for each in (load_onnx(tmp_path / "out"), whole))
    assert (theirs - ours).abs().mean() < 0.05 * ours.std()


def main_export(whole: Captioner, folder: Path, *options: str) -> int:
    whole.save_pretrained(folder / "saved")
    return main(["export", "--model", str(folder / "saved"), "--output", str(folder / "out"), *options])


def test_what_cannot_be_exported_or_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_captioner()
    (tmp_path / "there").mkdir()
    for name, options, error, match in (
        ("there", {}, ArgumentError, "exists already"),
        ("new", {"format": "tflite"}, ArgumentError, "format"),
        ("new", {"format": "torch", "int8": True}, ArgumentError, "int8"),
        ("new", {"max_length": 0}, ArgumentError, "max_length"),
    ):
        with pytest.raises(error, match=match):
            export(whole, tmp_path / name, **options)

    class Stubborn(nn.Module):
        feature_dim, image_spec = 8, whole.encoder.image_spec

        def forward(self, images: torch.Tensor) -> Features:
            return Features(torch.full((images.shape[0], 8), float(images.sum())))

        def config(self) -> dict[str, Any]:
            return {}

    decoder = LSTMDecoder(len(whole.vocabulary), 8, embed_dim=4, hidden_dim=4)
    with pytest.raises(ArgumentError, match=r"Stubborn and LSTMDecoder can't be exported"):
        export(Captioner(Stubborn(), decoder, whole.vocabulary), tmp_path / "new")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"showtell\[onnx\]"):
        export(whole, tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["there"]


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    whole, folder = captioner("attention"), tmp_path / "out"
    export(whole, folder)
    found = load_onnx(folder)
    with pytest.raises(ArgumentError, match="exported for images"):
        found.encode_pixels(torch.rand(1, 3, 32, 64))
    with pytest.raises(ArgumentError, match="copy its folder"):
        found.save_pretrained(tmp_path / "saved")
    assert found.for_inference().caption(photos()[0]).text == whole.caption(photos()[0]).text
    with pytest.raises(NotFoundError, match=r"step\.onnx"):
        load_onnx(tmp_path)
    for name in ("exported.json", "tokenizer.json", "encoder.onnx", "step.onnx"):
        whole_file = (folder / name).read_bytes()
        for damaged in (b"", b"{}", whole_file[: len(whole_file) // 2]):
            (folder / name).write_bytes(damaged)
            with pytest.raises(FormatError):
                load_onnx(folder)
        (folder / name).write_bytes(whole_file)
    (folder / "step.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    with pytest.raises(FormatError, match="don't belong together"):
        load_onnx(folder)
    facts = json.loads((folder / "exported.json").read_bytes())
    for key in facts:
        for odd in (None, True, 1.5, -1, "x", [], {}, [1], ["a"]):
            if odd == facts[key] or key in ("showtell", "int8") or (key, odd) == ("max_length", None):
                continue
            (folder / "exported.json").write_text(json.dumps({**facts, key: odd}))
            with pytest.raises((FormatError, ArgumentError)):
                load_onnx(folder)
    for nothing in (None, 5):
        with pytest.raises(ArgumentError):
            load_onnx(nothing)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError):
            export(nothing, folder)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_bundled_captioner_in_onnx_says_the_same_of_200_photos(shared: Path, tmp_path: Path) -> None:
    whole = Captioner.default()
    export(whole, tmp_path / "onnx")
    found = load_onnx(tmp_path / "onnx")
    some = [record.image for record in list(read_dataset(shared / "flickr8k").split("val"))[:200]]
    for search in ("greedy", None):
        theirs, ours = found.caption(some, search=search), whole.caption(some, search=search)
        assert [each.text for each in theirs] == [each.text for each in ours]
