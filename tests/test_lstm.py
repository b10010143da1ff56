from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell.decoders import LSTMDecoder, unroll
from showtell.errors import ArgumentError, DataError, NotFoundError
from showtell.protocols import Features
from showtell.rows import Rows

IMAGES = ["first", "initial-state", "every-step"]
VARIANTS = [
    {"image": image, "tied": tied, "layers": layers, "hidden_dim": hidden}
    for image in IMAGES
    for tied, layers, hidden in ((False, 1, 7), (True, 2, 7), (True, 1, 5), (False, 3, 5))
]
VARIANTS += [
    {"image": image, "tied": tied, "layers": 2, "embed_dim": 6, "project": False}
    for image, tied in (("first", False), ("every-step", True))
]


def make(**options: Any) -> LSTMDecoder:
    torch.manual_seed(0)
    return LSTMDecoder(
        **{"vocab_size": 11, "feature_dim": 6, "embed_dim": 5, "hidden_dim": 7, "dropout": 0.0, **options}
    )


def plain_lstm(decoder: LSTMDecoder, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of one row, gate by gate; h and c are (layers, H)."""
    weights = dict(decoder.lstm.named_parameters())
    new_h, new_c = [], []
    for layer in range(h.shape[0]):
        gates = (
            weights[f"weight_ih_l{layer}"] @ inputs
            + weights[f"bias_ih_l{layer}"]
            + weights[f"weight_hh_l{layer}"] @ h[layer]
            + weights[f"bias_hh_l{layer}"]
        )
        i, f, g, o = gates.chunk(4)
        new_c.append(f.sigmoid() * c[layer] + i.sigmoid() * g.tanh())
        inputs = o.sigmoid() * new_c[-1].tanh()
        new_h.append(inputs)
    return inputs, torch.stack(new_h), torch.stack(new_c)


def show_and_tell(decoder: LSTMDecoder, photo: Tensor, tokens: list[int]) -> Tensor:
    """The paper's equations for one photo and one caption, word by word -> (T, V)."""
    config = decoder.config()
    shape = (config["layers"], config["hidden_dim"])
    linear = decoder.projection
    seen = linear.weight @ photo + linear.bias if isinstance(linear, nn.Linear) else photo
    h, c = torch.zeros(shape), torch.zeros(shape)
    if config["image"] == "first":
        _, h, c = plain_lstm(decoder, seen, h, c)
    if config["image"] == "initial-state":
        half = shape[0] * shape[1]
        h, c = seen[:half].tanh().view(shape), seen[half:].tanh().view(shape)
    rows = []
    for token in tokens:
        word = decoder.embedding.weight[token]
        inputs = torch.cat([word, seen]) if config["image"] == "every-step" else word
        out, h, c = plain_lstm(decoder, inputs, h, c)
        if config["tied"]:
            if config["hidden_dim"] != config["embed_dim"]:
                out = decoder.bridge.weight @ out + decoder.bridge.bias
            rows.append(decoder.embedding.weight @ out + decoder.output_bias)
        else:
            assert decoder.output is not None
            rows.append(decoder.output.weight @ out + decoder.output.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_logits_are_those_of_the_equations(options: dict[str, Any]) -> None:
    decoder = make(**options).eval()
    photos, tokens = torch.randn(2, 6), torch.randint(0, 11, (6, 4))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no zero biases
        memory = decoder.prepare(Features(photos))
        forced = decoder(tokens, memory).logits
        for row in range(6):
            expected = show_and_tell(decoder, photos[row // 3], tokens[row].tolist())
            assert torch.allclose(forced[row], expected, atol=1e-5)
        assert torch.allclose(unroll(decoder, tokens, memory), forced, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_config_survives_json_and_builds_the_same_tensors(options: dict[str, Any]) -> None:
    decoder = make(**options, dropout=0.3)
    config = json.loads(json.dumps(decoder.config()))
    assert config == decoder.config()
    other = LSTMDecoder(**config)
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in decoder.state_dict().items()}
    with torch.device("meta"):
        built = LSTMDecoder(**config)
    assert all(t.is_meta for t in built.state_dict().values())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_no_two_tensors_of_the_state_dict_share_memory(options: dict[str, Any]) -> None:
    pointers = [t.data_ptr() for t in make(**options).state_dict().values()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    decoder = make(**options)
    memory = decoder.prepare(Features(torch.randn(2, 6)))
    decoder(torch.randint(0, 11, (4, 3)), memory).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("image", IMAGES)
def test_teacher_forcing_is_one_fused_call(image: str) -> None:
    decoder = make(image=image)
    lengths: list[int] = []
    decoder.lstm.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    decoder(torch.randint(0, 11, (4, 3)), decoder.prepare(Features(torch.randn(2, 6))))
    assert lengths == [4 if image == "first" else 3]


@pytest.mark.parametrize("image", IMAGES)
def test_the_photo_is_projected_once_however_many_steps(image: str) -> None:
    decoder = make(image=image)
    calls: list[int] = []
    decoder.projection.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[0]))
    unroll(decoder, torch.randint(0, 11, (6, 4)), decoder.prepare(Features(torch.randn(2, 6))))
    assert calls == [2]


@pytest.mark.parametrize("image", IMAGES)
def test_dropout_works_in_training_and_not_in_eval(image: str) -> None:
    decoder = make(image=image, dropout=0.5, layers=2)
    tokens = torch.randint(0, 11, (2, 3))

    def run() -> Tensor:
        return decoder(tokens, decoder.prepare(Features(torch.ones(2, 6)))).logits

    assert not torch.equal(run(), run())
    decoder.eval()
    assert torch.equal(run(), run())
    assert make(dropout=0.5).lstm.dropout == 0.0, "torch warns of dropout between the layers of one layer"


def test_the_forget_gate_starts_open() -> None:
    decoder = make(layers=2)
    for layer in range(2):
        bias = getattr(decoder.lstm, f"bias_ih_l{layer}") + getattr(decoder.lstm, f"bias_hh_l{layer}")
        assert bias.view(4, 7).sum(1).tolist() == [0, 7, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_features_are_cast_to_the_weights_type(dtype: torch.dtype) -> None:
    decoder = make().to(dtype)
    memory = decoder.prepare(Features(torch.randn(2, 6).half()))
    assert memory["image"].dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32  # words are told apart in float32 at least
    assert decoder(torch.randint(0, 11, (2, 3)), memory).logits.dtype == wide


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 3},
        {"vocab_size": 2_000_001},
        {"vocab_size": "11"},
        {"feature_dim": 0},
        {"feature_dim": 65537},
        {"embed_dim": 0},
        {"hidden_dim": 65537},
        {"hidden_dim": True},
        {"layers": 0},
        {"layers": 17},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"image": "last"},
        {"image": ["first"]},
        {"tied": 1},
        {"project": 0},
        {"project": False},  # feature_dim 6, embed_dim 5
        {"project": False, "embed_dim": 6, "image": "initial-state"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        make(**options)


def test_tensors_of_the_wrong_shape_or_type_are_refused() -> None:
    decoder = make()
    for pooled in (torch.randn(2, 7), torch.randn(6), torch.randn(2, 1, 6), torch.ones(2, 6, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match="pooled features"):
            decoder.prepare(Features(pooled))
    memory = decoder.prepare(Features(torch.randn(2, 6)))
    state = decoder.initial_state(memory, 5)
    ids = torch.ones(2, dtype=torch.int64)
    bad_steps: list[tuple[Tensor, Rows]] = [
        (ids.unsqueeze(1), state),
        (ids.int(), state),
        (ids.float(), state),
        (ids, {"h": state["h"]}),
        (ids, {**state, "c": state["c"][:, 0]}),
        (torch.ones(4, dtype=torch.int64), state),
    ]
    for tokens, before in bad_steps:
        with pytest.raises(ArgumentError):
            decoder.step(tokens, before, memory)
    for image in IMAGES:
        other = make(image=image)
        seen = other.prepare(Features(torch.randn(2, 6)))
        for tokens in (ids, ids.view(2, 1)[:, :0], ids.view(2, 1).float(), torch.ones(3, 2, dtype=torch.int64)):
            with pytest.raises(ArgumentError):
                other(tokens, seen)
        with pytest.raises(ArgumentError, match="shared out evenly"):
            unroll(other, torch.ones(3, 2, dtype=torch.int64), seen)
        with pytest.raises(ArgumentError):
            unroll(other, ids, seen)
    with pytest.raises(ArgumentError, match="no attention"):
        decoder(ids.view(2, 1), memory, attention=True)


WORDS = ["<pad>", "<start>", "<end>", "<unk>", "dog", "cat", "a b"]


def vectors(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "vectors.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "text",
    [
        "dog 1 2\ncat -3.5 4e-1\nbird 5 6\na b 7 8\n",
        "4 2\ndog 1 2 \r\ncat -3.5 4e-1 \r\nbird 5 6 \r\na b 7 8",
        "dog 1 2\ncat -3.5 4e-1\n\ndog 9 9\na b 7 8\n",
    ],
    ids=["glove", "word2vec", "listed twice"],
)
def test_word_vectors_set_the_rows_of_known_words(tmp_path: Path, text: str) -> None:
    decoder = make(vocab_size=7, embed_dim=2)
    before = decoder.embedding.weight.detach().clone()
    assert decoder.load_word_vectors(vectors(tmp_path, text), WORDS) == 3
    after = decoder.embedding.weight.detach()
    assert torch.equal(after[:4], before[:4])
    assert torch.equal(after[4:], torch.tensor([[1.0, 2.0], [-3.5, 0.4], [7.0, 8.0]]))
    assert decoder.embedding.weight.requires_grad


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("dog 1 2\ncat 3\n", 2),
        ("dog 1 2\ncat 3 x\n", 2),
        ("dog 1 nan\n", 1),
        ("dog 1 2\ncat inf 2\n", 2),
        ("10 300\ndog 1 2\n", 1),
        (b"dog 1 2\nbird \xff\xfe 2\n", 2),
        ("dog,1,2\n", 1),
    ],
)
def test_a_bad_line_is_named_and_changes_nothing(tmp_path: Path, text: str | bytes, line: int) -> None:
    decoder = make(vocab_size=7, embed_dim=2)
    before = decoder.embedding.weight.detach().clone()
    with pytest.raises(DataError, match=rf"vectors\.txt:{line}: "):
        decoder.load_word_vectors(vectors(tmp_path, text), WORDS)
    assert torch.equal(decoder.embedding.weight, before)


def test_a_word_list_of_another_size_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    decoder = make(vocab_size=7, embed_dim=2)
    with pytest.raises(ArgumentError, match="7 words"):
        decoder.load_word_vectors(vectors(tmp_path, ""), WORDS[:-1])
    with pytest.raises(NotFoundError):
        decoder.load_word_vectors(tmp_path / "none.txt", WORDS)
    assert decoder.load_word_vectors(vectors(tmp_path, ""), WORDS) == 0
