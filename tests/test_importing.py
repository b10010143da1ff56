"""Checkpoints of the tutorials: captions before and after, and nothing of a file is run."""

from __future__ import annotations

import json
import pickle
import random
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tutorial_models
from showtell import Captioner, Greedy
from showtell.cli import main
from showtell.errors import FormatError, NotFoundError, ShowtellError
from showtell.importing import import_checkpoint, read_words
from showtell.importing.pickles import read_checkpoint, read_pickle
from tutorial_models import (
    WORDS,
    DecoderRNN,
    DecoderWithAttention,
    Encoder,
    EncoderCNN,
    Vocabulary,
    captions_of,
    shaken,
)

MAP = {"<pad>": 0, **{word: i for i, word in enumerate(WORDS, start=1)}}
MAP |= {name: len(MAP) + i for i, name in enumerate(("<unk>", "<start>", "<end>"))}
SPECIAL = ["<pad>", "<start>", "<end>", "<unk>"]


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tutorials' modules: there while a file is written, gone while it is read."""
    for name in ("models", "model", "build_vocab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kinds: tuple[type, ...] = (Encoder, tutorial_models.Attention, DecoderWithAttention, Vocabulary)
    for kind in kinds:
        monkeypatch.setattr(kind, "__module__", "build_vocab" if kind is Vocabulary else "models")
        setattr(sys.modules[kind.__module__], kind.__name__, kind)
    yield
    for name in ("models", "model", "build_vocab"):
        sys.modules.pop(name, None)


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(3)).expand(-1, -1, size, size)


def save(content: Any, path: Path, zipped: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old format wants the source of a class, which a notebook hasn't either
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


def attention_checkpoint(folder: Path, *, zipped: bool = True, modules: bool = True) -> tuple[Any, Any, Path]:
    """A checkpoint as it is saved: the modules, the optimizers, some numbers."""
    torch.manual_seed(0)
    encoder, decoder = shaken(Encoder(), 1), shaken(DecoderWithAttention(len(MAP)), 2)
    optimizer = torch.optim.Adam(decoder.parameters(), 4e-4)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {
        "epoch": 3, "epochs_since_improvement": 0, "bleu-4": 0.2,
        "encoder": encoder if modules else encoder.state_dict(),
        "decoder": decoder if modules else decoder.state_dict(),
        "encoder_optimizer": None, "decoder_optimizer": optimizer,
    }  # fmt: skip
    path = folder / "BEST_checkpoint.pth.tar"
    save(state, path, zipped)
    (folder / "WORDMAP.json").write_text(json.dumps(MAP))
    return encoder, decoder, path


@pytest.mark.parametrize(("zipped", "modules"), [(True, True), (False, True), (True, False)])
def test_an_attention_checkpoint_captions_as_before(gone: None, tmp_path: Path, zipped: bool, modules: bool) -> None:
    encoder, decoder, path = attention_checkpoint(tmp_path, zipped=zipped, modules=modules)
    some = images(6, 256)
    expected = captions_of(encoder, decoder, some, WORDS, MAP)
    assert len(set(expected)) > 1
    for name in ("models", "build_vocab"):
        del sys.modules[name]

    words, output = tmp_path / "WORDMAP.json", tmp_path / "mine"
    assert main(["import", str(path), "--words", str(words), "--output", str(output)]) == 0
    captioner = Captioner.from_pretrained(output)
    assert [captioner.caption(image, search=Greedy()).text for image in some] == expected
    assert captioner.encoder.config()["backbone"] == "resnet18"
    assert "BEST_checkpoint.pth.tar" in (output / "README.md").read_text()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_two_state_dicts_and_a_pickled_vocabulary_caption_as_before(
    gone: None, tmp_path: Path, norm: bool, zipped: bool
) -> None:
    torch.manual_seed(0)
    names = SPECIAL + WORDS if norm else ["<start>", "<end>", "<unk>", *WORDS]
    encoder = shaken(EncoderCNN(8, norm), 1)
    decoder = shaken(DecoderRNN(len(names), 8, 12, 1 if norm else 2), 10 if norm else 8)
    some = images(6, 224)
    vocabulary = Vocabulary(names)
    expected = captions_of(encoder, decoder, some, names, vocabulary.word2idx)
    assert len(set(expected)) > 1
    files = [tmp_path / "encoder-5-3000.pkl", tmp_path / "decoder-5-3000.pkl"]
    for part, file in zip((encoder, decoder), files, strict=True):
        torch.save(part.state_dict(), file, _use_new_zipfile_serialization=zipped)
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(vocabulary))
    del sys.modules["build_vocab"]

    for order in (files, files[::-1]):
        captioner = import_checkpoint(order, tmp_path / "vocab.pkl")
        assert [captioner.caption(image, search=Greedy()).text for image in some] == expected
    captioner.save_pretrained(tmp_path / "mine")
    again = Captioner.from_pretrained(tmp_path / "mine")
    assert [again.caption(image, search=Greedy()).text for image in some] == expected
    spec = captioner.encoder.image_spec
    assert (spec.resize, spec.interpolation) == (("squash", "lanczos") if norm else ("crop", "bilinear"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_vocabulary_of_any_protocol_is_read(gone: None, tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(Vocabulary(SPECIAL + WORDS), protocol))
    del sys.modules["build_vocab"]
    assert read_words(path).vocabulary.words == (*SPECIAL, *WORDS)


def test_word_tables_of_every_kind_are_read(tmp_path: Path) -> None:
    def read(table: Any) -> tuple[str, ...]:
        path = tmp_path / "words.json"
        path.write_text(json.dumps(table))
        return read_words(path).vocabulary.words

    expected = (*SPECIAL, *WORDS)
    assert read(MAP) == expected
    assert read({str(number): word for word, number in MAP.items()}) == expected
    neuraltalk = {"ix_to_word": {str(i): w for i, w in enumerate([*WORDS, "UNK"], start=1)}, "images": [{"id": 1}]}
    assert read(neuraltalk) == expected
    assert read({"word2idx": MAP, "idx": 19}) == expected


class Bomb:
    """Runs a command when it is unpickled, for whoever runs pickles."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return exec, (f"import pathlib; pathlib.Path({str(self.target)!r}).write_text('run')",)


def test_nothing_that_a_pickle_asks_for_is_run(tmp_path: Path) -> None:
    target = tmp_path / "run.txt"
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps({"word2idx": Bomb(target)}))
    with pytest.raises(FormatError, match="no table of words"):
        read_words(tmp_path / "vocab.pkl")
    for zipped in (True, False):
        torch.save(
            {"encoder": Bomb(target), "w": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
        )
        content = read_checkpoint(tmp_path / "x.pt")
        assert content["encoder"].path in ("builtins.exec", "__builtin__.exec")
        assert content["w"].load().tolist() == [1, 1]
    assert not target.exists()
    pickle.loads((tmp_path / "vocab.pkl").read_bytes())
    assert target.read_text() == "run"  # it would have worked


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04.", b"garbage", b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b"x.",  # a bytearray of a terabyte
        b"\x80\x02r\xff\xff\xff\xff.", b"\x80\x04N" + b"r\xff\xff\xff\xff" + b".",  # a memo of 4 billion places
        b"(" * 100_000, b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x02)" + b"2\x86" * 40 + b"q\x00}h\x00K\x01s.",  # a key that takes for ever to be hashed
        pickle.dumps({k * (2**61 - 1): "w" for k in range(1, 9)}), pickle.dumps({float("inf"): "a", 1: "b"}),
        pickle.dumps({10**5000: "a"}), pickle.dumps({"a": 10**5000}), b"\x80\x02cfoo\nBar\n)\x81.", b"]" * 5_100_000,
        b"\x80\x02U\x01aQ.", b"\x80\x05\x97.", b"\x80\x02\x82\x01.",
    ],
)  # fmt: skip
def test_a_hostile_pickle_is_an_error_or_data(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vocab.pkl"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"vocab\.pkl"):
        read_words(path)
    with pytest.raises(FormatError, match=r"vocab\.pkl"):
        read_checkpoint(path)


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    class Claim:
        def __init__(self, *claimed: Any) -> None:
            self.claimed = claimed

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, self.claimed

    storage = torch.ones(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    growing = [2]
    for claimed in (
        (0, growing, [1]),
        (0, (2,), [1]),
        (0, b"\x02", (1,)),
        (0, (0, 2**47, 2**47), (1, 1, 1)),
        (0, (10**9,), (0,)),
        (0, (2, 3), (3, 1)),
        (2, (3,), (1,)),
        (-1, (2,), (1,)),
        (0, (2,), ("x",)),
    ):
        path = tmp_path / "claim.pt"
        torch.save({"w": Claim(typed, *claimed, False, {})}, path)
        with pytest.raises(FormatError, match=r"claim\.pt"):
            read_checkpoint(path)


def test_modules_that_share_their_children_without_end_are_refused(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    for _ in range(40):
        parent = torch.nn.Module()
        parent.a = parent.b = module
        module = parent
    save({"encoder": module, "decoder": module}, tmp_path / "dag.pt")
    (tmp_path / "words.json").write_text(json.dumps(MAP))
    with pytest.raises(FormatError, match=r"nest deeper|in a circle"):
        import_checkpoint([tmp_path / "dag.pt"], tmp_path / "words.json")


def test_sizes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    encoder, decoder = EncoderCNN(8, True).state_dict(), DecoderRNN(len(MAP), 8, 12, 1).state_dict()
    decoder["linear.weight"] = torch.zeros(1).expand(len(MAP), 60_000).contiguous()  # an LSTM of 58 GB
    for state, name in ((encoder, "e.pkl"), (decoder, "d.pkl")):
        torch.save(state, tmp_path / name)
    (tmp_path / "words.json").write_text(json.dumps(MAP))
    with pytest.raises(FormatError, match=r"lstm\.weight_ih_l0.*has the shape"):
        import_checkpoint([tmp_path / "e.pkl", tmp_path / "d.pkl"], tmp_path / "words.json")


def test_what_a_pickle_sets_on_a_stand_in_is_gone_with_it(tmp_path: Path) -> None:
    read_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilX\x01\x00\x00\x00xsb.", "x")
    from showtell.importing import pickles

    assert "evil" not in vars(pickles._Inert._tensor)
    assert "evil" not in vars(pickles)


def test_strided_and_half_tensors_come_out_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    given = {
        "t": base.t(), "row": base[1], "half": base.half(), "bf16": base.bfloat16(), "ids": torch.arange(3),
        "none": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "p": torch.nn.Parameter(base),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save(given, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        for name, stored in read_checkpoint(tmp_path / "x.pt").items():
            assert torch.equal(stored.load(), given[name].detach())
            assert stored.load().dtype == given[name].dtype


def test_what_does_not_go_together_is_said(gone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, decoder, path = attention_checkpoint(tmp_path)
    words = tmp_path / "WORDMAP.json"

    def refused(match: str, *files: Path, words: Path = words) -> None:
        with pytest.raises(ShowtellError, match=match):
            import_checkpoint(files or (path,), words)
        assert (
            main(["import", *map(str, files or (path,)), "--words", str(words), "--output", str(tmp_path / "o")]) == 2
        )
        assert not (tmp_path / "o").exists()

    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps({w: i for i, w in enumerate([*SPECIAL, "a"])}))
    refused(r"20 words and the vocabulary 5|19 words and the vocabulary 5", words=fewer)
    gaps = tmp_path / "gaps.json"
    gaps.write_text(json.dumps({"<start>": 0, "<end>": 7}))
    refused("0..1, each once", words=gaps)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"a": 0, "b": 1}))
    refused("has no <start>", words=bare)
    refused("there is no file", tmp_path / "nothing.pt")
    torch.save(decoder.state_dict(), tmp_path / "decoder.pkl")
    refused("no ResNet encoder", tmp_path / "decoder.pkl")
    state = decoder.state_dict()
    del state["init_h.bias"]
    torch.save({"encoder": Encoder().state_dict(), "decoder": state}, tmp_path / "less.pt")
    refused(r"init_h\\?\.bias", tmp_path / "less.pt")
    state = {**decoder.state_dict(), "more.weight": torch.ones(1)}
    torch.save({"encoder": Encoder().state_dict(), "decoder": state}, tmp_path / "more.pt")
    refused("more.weight", tmp_path / "more.pt")
    short = tmp_path / "short.pt"
    short.write_bytes(path.read_bytes()[:-20000])
    refused("short.pt", short)
    with pytest.raises(NotFoundError):
        read_words(tmp_path / "nothing.json")
    assert "showtell:" in capsys.readouterr().err


def test_mutated_checkpoints_and_vocabularies_are_an_error_or_a_result(gone: None, tmp_path: Path) -> None:
    dice = random.Random(0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])
    save({"encoder": Encoder, "w": torch.ones(3, 2), "o": optimizer}, tmp_path / "a.pt", False)
    torch.save({"w": torch.ones(3, 2), "v": Vocabulary(["a"])}, tmp_path / "b.pt")
    whole = [pickle.dumps(Vocabulary(SPECIAL + WORDS), p) for p in (0, 2, 4)]
    whole += [(tmp_path / name).read_bytes() for name in ("a.pt", "b.pt")]
    target = tmp_path / "mutated"
    ends: dict[str, int] = {"result": 0, "error": 0}
    for _ in range(600):
        data = bytearray(dice.choice(whole))
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(data))
            data[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
        target.write_bytes(data)
        for read in (read_words, read_checkpoint, lambda path: read_pickle(path.read_bytes(), "x")):
            try:
                read(target)
                ends["result"] += 1
            except ShowtellError:
                ends["error"] += 1
    assert ends["error"] > 300
    assert ends["result"] > 20
