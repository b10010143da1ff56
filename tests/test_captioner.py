"""The beginner's object: photos in, sentences out, saved and loaded."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import showtell
from showtell import Beam, Caption, Captioner, Features, Greedy, ImageSpec, Vocabulary
from showtell.encoders.efficientnet_lite import EfficientNetLite
from showtell.errors import ArgumentError, ComponentError, FormatError, ImageError, NotFoundError
from showtell.testing import TinyEncoder, tiny_captioner


@pytest.fixture
def captioner() -> Captioner:
    return tiny_captioner()


def photo(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_one_photo_gives_a_caption_and_a_list_gives_a_list(captioner: Captioner) -> None:
    assert isinstance(captioner.caption(photo()), Caption)
    many = captioner.caption([photo(), photo(1)])
    assert isinstance(many, list)
    assert len(many) == 2
    assert captioner.caption([]) == []
    assert captioner.generate([]) == []


def test_every_kind_of_photo_gives_the_same_caption(captioner: Captioner, tmp_path: Path) -> None:
    image = photo()
    path = tmp_path / "photo.png"
    path.write_bytes(as_bytes(image))
    array = np.asarray(image)
    sources = [path, str(path), as_bytes(image), io.BytesIO(as_bytes(image)), image, array]
    texts = {(c.text, round(c.log_prob, 4)) for s in sources if isinstance(c := captioner.caption(s), Caption)}
    assert len(texts) == 1


def test_a_batch_equals_one_by_one(captioner: Captioner) -> None:
    photos = [photo(i) for i in range(7)]
    for search in ("greedy", "beam:3"):
        together = captioner.generate(photos, search=search, batch_size=7)
        apart = [captioner.generate(p, search=search)[0] for p in photos]
        cut = captioner.generate(photos, search=search, batch_size=3)
        for a, b, c in zip(together, apart, cut, strict=True):
            assert [x.text for x in a] == [x.text for x in b] == [x.text for x in c]
            assert [x.log_prob for x in a] == pytest.approx([x.log_prob for x in b], abs=1e-4)


@pytest.mark.parametrize("search", [Greedy(max_length=6), Beam(size=4, max_length=6), Beam(size=3, length_penalty=1.0)])
def test_log_probs_are_the_models_own_whatever_the_search(captioner: Captioner, search: Any) -> None:
    features = captioner.encode([photo(i) for i in range(3)])
    words = captioner.vocabulary
    for row, best in enumerate(captioner.generate(features, search=search)):
        for caption in best:
            ids = [words.words.index(token) for token in caption.tokens]
            given = torch.tensor([[words.start_id, *ids[:-1]]])
            one = Features(pooled=features.pooled[row : row + 1])
            with torch.no_grad():
                logits = captioner.eval()(one, given).logits.double()
            expected = logits.log_softmax(-1)[0].gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert caption.token_log_probs == pytest.approx(expected.tolist(), abs=1e-5)
            assert caption.log_prob == pytest.approx(sum(caption.token_log_probs))


def test_candidates_are_the_n_best_list_best_first(captioner: Captioner) -> None:
    caption = captioner.caption(photo(), search=Beam(size=5))
    assert isinstance(caption, Caption)
    scores = [c.score for c in caption.candidates]
    assert scores == sorted(scores, reverse=True)
    assert caption.candidates[0].text == caption.text == str(caption)
    assert len({c.tokens for c in caption.candidates}) == 5


def test_unknown_and_padding_are_never_said(captioner: Captioner) -> None:
    for best in captioner.generate([photo(i) for i in range(10)], search="beam:5"):
        for caption in best:
            assert not {"<unk>", "<pad>", "<start>"} & set(caption.tokens)


def test_captioning_leaves_the_training_mode_as_it_was(captioner: Captioner) -> None:
    captioner.train()
    captioner.encoder.eval()  # type: ignore[attr-defined]
    captioner.caption(photo())
    assert captioner.training
    assert captioner.decoder.training  # type: ignore[attr-defined]
    assert not captioner.encoder.training  # type: ignore[attr-defined]


def test_a_bad_photo_in_a_list_is_named(captioner: Captioner, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        captioner.caption([photo(), bad])


TOKENS = torch.ones(1, 2, dtype=torch.int64)


class PlainEncoder(TinyEncoder):
    """Returns a tensor where Features are due."""

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images).pooled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.caption(photo(), search="beem:3"), "beem"),
        (lambda c: c.caption(photo(), batch_size=0), "batch_size"),
        (lambda c: c.caption(photo(), batch_size=2.5), "batch_size"),
        (lambda c: c.encode([]), "at least one"),
        (lambda c: Captioner(c.encoder, c.decoder, Vocabulary.build(["a dog"], min_count=1)), "words"),
        (lambda c: c.caption(photo(), search=5), "a search is"),
        (lambda c: c.caption(photo(), search=Beam), "a search is"),
        (lambda c: c.caption(Features(None)), "Features without a pooled tensor"),
        (lambda c: Captioner(c.encoder, c.decoder, c.vocabulary, search=None), "a search is"),
        (lambda c: Captioner(c.encoder, c.decoder, None), "vocabulary must be"),
        (lambda c: Captioner(TinyEncoder, c.decoder, c.vocabulary), "not the class"),
        (lambda c: Captioner.from_pretrained(5), "a folder or a Hub id"),
        (lambda c: Captioner.default(device="nonsense"), "is no device"),
        (lambda c: Captioner.default(device="meta"), "no such device"),
        (lambda c: Captioner.default(dtype="float16"), "dtype must be"),
        (lambda c: Captioner.default(dtype=torch.int8), "dtype must be"),
        (lambda c: Captioner(PlainEncoder(), c.decoder, c.vocabulary).caption(photo()), "PlainEncoder must return"),
        (lambda c: Captioner(PlainEncoder(), c.decoder, c.vocabulary)(torch.rand(1, 3, 32, 32), TOKENS), "must return"),
        (lambda c: Captioner(nn.Linear(3, 3), c.decoder, c.vocabulary), "encoder must be"),
        (lambda c: Captioner(c.encoder, "lstm", c.vocabulary), "decoder must be"),
        (lambda c: Captioner(TinyEncoder(feature_dim=7), c.decoder, c.vocabulary), "features"),
        (lambda c: c.save_pieces(weights_dtype="int8"), "weights_dtype"),
    ],
)
def test_nonsense_is_refused_with_the_reason(captioner: Captioner, call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(captioner)


# --- saving and loading ---


def same_captions(a: Captioner, b: Captioner) -> bool:
    photos = [photo(i) for i in range(4)]
    left, right = (c.caption(photos, search="beam:3") for c in (a, b))
    return left == right


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_save_load_save_gives_the_same_bytes(captioner: Captioner, tmp_path: Path, dtype: str) -> None:
    captioner.save_pretrained(tmp_path / "a", weights_dtype=dtype)
    loaded = Captioner.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    if dtype == "float32":
        assert same_captions(captioner, loaded)


def test_the_search_is_saved_with_the_captioner(captioner: Captioner, tmp_path: Path) -> None:
    captioner.search = Beam(size=4, max_length=9, length_penalty=0.5)
    captioner.save_pretrained(tmp_path / "a")
    assert Captioner.from_pretrained(tmp_path / "a").search == captioner.search


def test_a_captioner_in_half_precision_captions(captioner: Captioner) -> None:
    half = captioner.to(torch.bfloat16)
    assert isinstance(half.caption(photo()), Caption)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_backbone_in_another_precision_still_sees_all_256_levels(captioner: Captioner, dtype: torch.dtype) -> None:
    encoder = EfficientNetLite(image_size=32, head={"dim": captioner.encoder.feature_dim}).to(dtype).eval()
    seen: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    pixels = torch.arange(3 * 32 * 32).remainder(256).view(1, 3, 32, 32) / 255
    assert with_encoder(captioner, encoder).encode_pixels(pixels).pooled.dtype == dtype
    assert torch.equal(seen[0], pixels)


class Unregistered(TinyEncoder):
    """A subclass as researchers write them."""


def with_encoder(captioner: Captioner, encoder: Any) -> Captioner:
    return Captioner(encoder, captioner.decoder, captioner.vocabulary)


def test_an_unregistered_encoder_is_saved_as_text_and_loads_when_given(captioner: Captioner, tmp_path: Path) -> None:
    mine = with_encoder(captioner, Unregistered(**captioner.encoder.config())).eval()
    mine.save_pretrained(tmp_path / "mine")
    saved = json.loads((tmp_path / "mine" / "config.json").read_text())["encoder"]
    assert saved["name"] is None
    assert saved["class"].endswith(":Unregistered")
    with pytest.raises(ComponentError, match="encoder=Unregistered"):
        Captioner.from_pretrained(tmp_path / "mine")
    assert same_captions(mine, Captioner.from_pretrained(tmp_path / "mine", encoder=Unregistered))
    assert same_captions(mine, Captioner.from_pretrained(tmp_path / "mine", encoder=lambda **c: Unregistered(**c)))


def test_a_given_instance_keeps_its_own_weights_and_this_is_said(captioner: Captioner, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "a")
    torch.manual_seed(1)
    other = TinyEncoder(**captioner.encoder.config())
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.warns(UserWarning, match="keeps its own weights"):
        loaded = Captioner.from_pretrained(tmp_path / "a", encoder=other)
    assert loaded.encoder is other
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(ArgumentError, match="features"):
        Captioner.from_pretrained(tmp_path / "a", encoder=TinyEncoder(feature_dim=5))


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.update(format_version=99), FormatError),
        (lambda c: c.update(auto_map={}), FormatError),
        (lambda c: c["decoder"].update(name="os.system"), ComponentError),
        (lambda c: c["decoder"].update(name="nobody.v1"), ComponentError),
        (lambda c: c["decoder"]["config"].update(hidden_dim=10**12), FormatError),
        (lambda c: c["decoder"]["config"].update(hidden_dim=60_000), FormatError),
        (lambda c: c["decoder"]["config"].update(surprise=1), FormatError),
        (lambda c: c["decoder"]["config"].pop("vocab_size"), FormatError),
        (lambda c: c["generation"].update(size=-1), FormatError),
        (lambda c: c.update(weights_dtype="float64"), FormatError),
    ],
)
def test_a_config_that_lies_is_refused(captioner: Captioner, tmp_path: Path, change: Any, error: Any) -> None:
    captioner.save_pretrained(tmp_path / "a")
    edit(tmp_path / "a", change)
    with pytest.raises(error):
        Captioner.from_pretrained(tmp_path / "a")


def test_another_captioners_vocabulary_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text(Vocabulary.build(["a dog"], min_count=1).to_json())
    with pytest.raises(FormatError, match="belong together"):
        Captioner.from_pretrained(tmp_path / "a")


def test_what_is_missing_is_named(captioner: Captioner, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        Captioner.from_pretrained(tmp_path / "nowhere")
    captioner.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        Captioner.from_pretrained(tmp_path / "a")


def test_an_encoder_whose_config_is_no_json_is_refused_before_anything_is_written(
    captioner: Captioner, tmp_path: Path
) -> None:
    class Odd(TinyEncoder):
        def config(self) -> dict[str, Any]:
            return {"spec": ImageSpec(3, 3)}

    with pytest.raises(ArgumentError, match="config"):
        with_encoder(captioner, Odd(feature_dim=captioner.encoder.feature_dim)).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_one_captioner_serves_several_threads(captioner: Captioner) -> None:
    photos = [photo(i) for i in range(8)]
    expected = [str(c) for c in captioner.caption(photos)]
    results: list[list[str]] = []

    def work() -> None:
        results.append([str(captioner.caption(p)) for p in photos])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_the_public_names_exist_and_are_sorted() -> None:
    assert list(showtell.__all__) == sorted(showtell.__all__)
    assert all(hasattr(showtell, name) for name in showtell.__all__)


def test_forward_takes_photos_features_and_trunk_features(captioner: Captioner) -> None:
    captioner.eval()
    images = torch.rand(2, 3, 32, 32)
    tokens = torch.tensor([[1, 4], [1, 5], [1, 4], [1, 6]])
    with torch.no_grad():
        by_image: Tensor = captioner(images, tokens).logits
        by_features = captioner(captioner.encoder(images), tokens).logits
    assert by_image.shape == (4, 2, len(captioner.vocabulary))
    assert torch.allclose(by_image, by_features)
    assert all(math.isfinite(x) for x in by_image.flatten().tolist())


def test_the_model_card_survives_loading_and_saving(captioner: Captioner, tmp_path: Path) -> None:
    captioner.save_pretrained(tmp_path / "a", card="---\nlibrary_name: showtell\n---\nMine.\n")
    Captioner.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text().endswith("Mine.\n")


def test_the_default_captioner_captions_the_example_photos(photos: list[Path]) -> None:
    captions = Captioner.default().caption(photos)
    assert isinstance(captions, list)
    assert len({c.text for c in captions}) > 1
    assert all(len(c.text.split()) >= 4 and c.tokens[-1] == "<end>" for c in captions)


def test_loading_draws_no_random_numbers_and_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from showtell import Captioner; from showtell.assembly import shapes_only\n"
        "with shapes_only():\n"
        "    assert torch.nn.Embedding(3, 4).weight.is_meta and torch.nn.Linear(3, 4).weight.is_meta\n"
        "Captioner.default()\n"
        "assert 'torch._dynamo' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pixels", [torch.rand(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "dog.jpg"])
def test_pixels_that_are_no_batch_of_floats_are_refused(pixels: Any) -> None:
    with pytest.raises(ArgumentError, match=r"encode_pixels takes floats \(photos, 3, height, width\)"):
        tiny_captioner().encode_pixels(pixels)
