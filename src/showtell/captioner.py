"""The one object a beginner holds: an encoder, a decoder, a vocabulary and the way to save them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from . import hub, storage, weights
from .asking import Asking
from .assembly import check_part, part_entry
from .attention import AttentionMaps, attend
from .bulk import Row, caption_iter
from .caption import Caption
from .constraints import Constraints
from .devices import usable_device
from .encoders.base import BackboneEncoder
from .encoders.joined import JoinedEncoder
from .errors import ArgumentError
from .generate import evaluating
from .images import ImageSource, load_images
from .inference import fold_batch_norms, lay_out
from .loading import load_captioner
from .photos import Photos, check_batch_size, listed
from .protocols import Decoder, Encoder, Features, Forced, SplitEncoder, as_features, join_features
from .search import Greedy, Search, as_search, search_to_config
from .vocabulary import Vocabulary

__all__ = ["Caption", "Captioner", "Photos"]

_DEFAULT_FOLDER = Path(__file__).parent / "default_model"


class Captioner(Asking, nn.Module):
    """Photo in, sentence out: an encoder, a decoder, a vocabulary and a search.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> import torch
        >>> captioner = tiny_captioner()
        >>> isinstance(captioner.caption(torch.rand(3, 32, 32)).text, str)
        True

    Args:
        encoder: photos to features; any `Encoder`.
        decoder: features and words so far to the next word; any `Decoder`.
        vocabulary: as many words as the decoder has scores.
        search: how to look for a caption when a call doesn't say: `Greedy()`, `Beam(size=3)` or their short
            form "beam:3".

    Raises:
        ArgumentError: the parts don't fit each other.
    """

    encoder: Encoder
    decoder: Decoder

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        search: Search | str = Greedy(),  # noqa: B008 - frozen
    ) -> None:
        """Put the parts together after checking that they fit."""
        super().__init__()
        check_part("encoder", encoder)
        check_part("decoder", decoder)
        if not isinstance(vocabulary, Vocabulary):
            raise ArgumentError(f"the vocabulary must be a showtell.Vocabulary, not {type(vocabulary).__name__}")
        if decoder.vocab_size != len(vocabulary):
            raise ArgumentError(
                f"the decoder has {decoder.vocab_size} words and the vocabulary {len(vocabulary)}; "
                "build the decoder with vocab_size=len(vocabulary)"
            )
        expected = decoder.config().get("feature_dim")
        if expected is not None and expected != encoder.feature_dim:
            raise ArgumentError(
                f"the encoder gives {encoder.feature_dim} features and the decoder expects {expected}; "
                "build the decoder with feature_dim=encoder.feature_dim"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.search = as_search(search)
        self._saved_dtype = "float32"
        self._card: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        return next((t.device for t in self._decoder_module.parameters()), torch.device("cpu"))

    @property
    def _decoder_module(self) -> nn.Module:
        return cast(nn.Module, self.decoder)

    # --- from photos to sentences -------------------------------------------------------------------------------

    def forward(
        self, images_or_features: Tensor | Features, tokens: Tensor, *, trunk: bool = False, attention: bool = False
    ) -> Forced:
        """Teacher forcing: what training, scoring and DDP call.

        Args:
            images_or_features: images (N, 3, H, W) float in 0..1, or Features as the encoder returns them; with
                `trunk=True` Features as its trunk returns them, the head still to come.
            tokens: (R, T) int64, the start token first; R = N * K, the K rows of image 0 first.
            trunk: the features come from `encoder.trunk` (a feature cache).
            attention: also return the attention maps (R, T, L).

        Returns:
            Forced with logits (R, T, V): the scores of the token after each given one.
        """
        if isinstance(images_or_features, Tensor):
            features = self.encoder(images_or_features)
        elif trunk and isinstance(self.encoder, SplitEncoder):
            features = self.encoder.head(images_or_features)
        else:
            features = images_or_features
        features = as_features(features, f"{type(self.encoder).__name__} must return")
        return self.decoder(tokens, self.decoder.prepare(features), attention=attention)

    def encode(self, images: ImageSource | Sequence[ImageSource], *, batch_size: int = 32) -> Features:
        """Encode photos once, to caption or score them several times.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> captioner = tiny_captioner()
            >>> features = captioner.encode([torch.rand(3, 32, 32), torch.rand(3, 40, 50)])
            >>> len(captioner.caption(features))
            2

        A single photo gives the Features of one. Raises ImageError for a photo that can't be read.
        """
        photos = listed(images)
        check_batch_size(batch_size)
        if not photos:
            raise ArgumentError("no photos to encode; pass at least one")
        parts = []
        for start in range(0, len(photos), batch_size):
            pixels = load_images(photos[start : start + batch_size], self.encoder.image_spec)
            parts.append(self.encode_pixels(pixels))
        return parts[0] if len(parts) == 1 else join_features(parts)

    def encode_pixels(self, pixels: Tensor) -> Features:
        """Encode images that are resized already: (N, 3, H, W) float in 0..1, on any device, in any precision."""
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not pixels.is_floating_point():
            given = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ArgumentError(f"encode_pixels takes floats (photos, 3, height, width), not {given}; or use encode")
        dtype = next((t.dtype for t in cast(nn.Module, self.encoder).parameters()), pixels.dtype)
        if isinstance(self.encoder, BackboneEncoder | JoinedEncoder):  # casts by itself, normalised in float32
            dtype = torch.float32
        with torch.inference_mode(), evaluating(self.encoder):
            return as_features(
                self.encoder(pixels.to(self.device, dtype)), f"{type(self.encoder).__name__} must return"
            )

    def caption_iter(
        self,
        photos: Iterable[ImageSource],
        *,
        search: Search | str | None = None,
        batch_size: int = 32,
        constraints: Constraints | None = None,
        workers: int | None = None,
        skip_bad: bool = True,
        start: int = 0,
    ) -> Iterator[Row]:
        """Caption any number of photos in constant memory, a row for each as soon as it is known.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> rows = tiny_captioner().caption_iter((torch.rand(3, 32, 32) for _ in range(5)), batch_size=2)
            >>> sum(row.error is None for row in rows)
            5

        A photo that can't be read is a row with the error. Arguments: see `showtell.bulk.caption_iter`.
        """
        return caption_iter(
            self,
            photos,
            search=search,
            batch_size=batch_size,
            constraints=constraints,
            workers=workers,
            skip_bad=skip_bad,
            start=start,
        )

    def attend(
        self, images: Photos, captions: str | Caption | Sequence[str | Caption], *, batch_size: int = 32
    ) -> AttentionMaps | list[AttentionMaps]:
        """Where the decoder looks for each word of a caption, as boxes of the original photo; see `showtell.attention`.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> captioner, photo = tiny_captioner(decoder="attention-lstm.v1"), torch.rand(3, 32, 32)
            >>> maps = captioner.attend(photo, captioner.caption(photo))
            >>> maps.weights.shape == (len(maps.words), len(maps.boxes))
            True

        A text's words, or a `Caption`'s tokens; lists and Features give a list. Raises ArgumentError for a decoder
        without attention and an encoder without boxes, ImageError for a photo that can't be read.
        """
        return attend(self, images, captions, batch_size=batch_size)

    def for_inference(self) -> Self:
        """A copy that captions faster and can't be trained or saved: batch norms folded, convolutions channels last.

        Example:
            >>> fast = Captioner.default().for_inference()
            >>> any(isinstance(part, nn.BatchNorm2d) for part in fast.modules())
            False

        Captions are the same but where two are equally likely up to rounding. What it gains: docs/speed.md. Parts that
        can't be folded stay as they are; see `showtell.inference.fold_batch_norms`.
        """
        fast = copy.deepcopy(self).eval().requires_grad_(False)
        encoder = cast(nn.Module, fast.encoder)
        for one in encoder.parts if isinstance(encoder, JoinedEncoder) else [encoder]:
            for part in (one, *one.children()):
                fold_batch_norms(part)
        lay_out(encoder, torch.channels_last)
        spec = fast.encoder.image_spec
        try:
            fast.encode_pixels(torch.zeros(1, 3, spec.height, spec.width))
        except Exception:  # a foreign forward may take contiguous maps only, to view them as rows for instance
            lay_out(encoder, torch.contiguous_format)
        for part in fast.modules():
            if isinstance(part, nn.RNNBase):  # a copy's weights lie apart, and cuDNN would gather them at every call
                part.flatten_parameters()
        vars(encoder)["_folded"] = True
        return fast

    # --- saving and loading ---------------------------------------------------------------------------------------

    def save_pieces(self, *, weights_dtype: str | None = None) -> dict[str, Any]:
        """What `storage.write_folder` wants: config, tokenizer and tensors.

        Raises ArgumentError when a part's config isn't JSON, and for a copy made by `for_inference`. `weights_dtype`
        is "float32", "float16" or "bfloat16"; default: what the captioner was loaded with, else "float32".
        """
        if any("_folded" in vars(module) for module in cast(nn.Module, self.encoder).modules()):
            raise ArgumentError("this captioner is a copy made by for_inference(); save the one it was made from")
        dtype = weights_dtype or self._saved_dtype
        config = {
            "format": storage.FORMAT,
            "format_version": storage.FORMAT_VERSION,
            "weights_dtype": dtype,
            "encoder": part_entry("encoder", self.encoder),
            "decoder": part_entry("decoder", self.decoder),
            "generation": search_to_config(self.search),
        }
        tensors = weights.saved_tensors(_parts(self), dtype)
        return {"config": config, "tokenizer": self.vocabulary.to_json(), "tensors": tensors}

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, weights_dtype: str | None = None, card: str | None = None
    ) -> None:
        """Save to a folder, atomically: config.json, tokenizer.json, model.safetensors, README.md.

        Example:
            >>> import tempfile
            >>> from showtell.testing import tiny_captioner
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     tiny_captioner().save_pretrained(folder, weights_dtype="float16")
            ...     print(Captioner.from_pretrained(folder).vocabulary.words[0])
            <pad>

        Args:
            folder: made if absent; a captioner that is there is replaced whole, foreign files stay.
            weights_dtype: "float32", "float16" or "bfloat16"; default: as it was loaded.
            card: the model card's text; default: the card it was loaded with, else a short one.
        """
        text = card or self._card or hub.model_card(title="A showtell captioner")
        storage.write_folder(folder, **self.save_pieces(weights_dtype=weights_dtype), card=text)

    @classmethod
    def default(cls, **options: Any) -> Self:
        """The captioner that comes with showtell: real photos, offline, 14 MB.

        Example:
            >>> Captioner.default().encoder.feature_dim
            288

        `options` are `from_pretrained`'s `device` and `dtype`. For research and non-commercial use, as the data
        it was trained on asks; see docs/default-model.md.
        """
        return cls.from_pretrained(_DEFAULT_FOLDER, **options)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        encoder: Callable[..., Encoder] | Encoder | None = None,
        decoder: Callable[..., Decoder] | Decoder | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Load a captioner from a folder or from the Hugging Face Hub, strictly, running nothing that is in it.

        Example:
            >>> import tempfile
            >>> from showtell.testing import TinyEncoder, tiny_captioner
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     tiny_captioner().save_pretrained(folder)
            ...     captioner = Captioner.from_pretrained(folder, encoder=TinyEncoder)

        Args:
            source: a folder, or a Hub id such as "user/flickr8k-lstm".
            revision: branch, tag or commit on the Hub.
            token: the Hub token, or True for the stored one.
            local_files_only: never ask the network.
            encoder: for a part that isn't registered: a class or factory is built from the saved config and its
                weights loaded; an instance is used as it is, and the file's encoder weights are ignored (a warning
                says so).
            decoder: likewise.
            device: where to put it, "cuda" for instance.
            dtype: what to compute in; default float32.

        Raises:
            NotFoundError: no such folder or repository.
            FormatError: not a showtell captioner, or a damaged one.
            ComponentError: its encoder or decoder isn't known here.
            ArgumentError: a device that isn't there, or a dtype that isn't floating.
        """
        where = None if device is None else usable_device("device", device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ArgumentError(f"dtype must be a floating one such as torch.bfloat16, not {dtype!r:.100}")
        folder = hub.resolve(source, revision=revision, token=token, local_files_only=local_files_only)
        captioner, saved = load_captioner(cls, folder, {"encoder": encoder, "decoder": decoder})
        captioner._saved_dtype = saved.config["weights_dtype"]
        captioner._card = saved.card
        return captioner.eval().to(device=where, dtype=dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        tag: str | None = None,
        commit_message: str = "Upload a showtell captioner",
        weights_dtype: str | None = None,
        card: str | None = None,
    ) -> str:
        """Save to the Hugging Face Hub and return the address.

        Example:
            >>> Captioner.default().push_to_hub("user/my-captioner", private=True)  # doctest: +SKIP
            'https://huggingface.co/user/my-captioner'

        The repository is made if absent; the files go to the branch `revision` ("main"), and `tag` names this upload
        for good. `private` is for a new repository. Raises HubError when the Hub can't be reached or refuses.
        """
        with storage.scratch_folder() as folder:
            self.save_pretrained(folder, weights_dtype=weights_dtype, card=card)
            return hub.push(
                folder, repo_id, private=private, token=token, revision=revision, tag=tag,
                commit_message=commit_message,
            )  # fmt: skip


def _parts(captioner: Captioner) -> dict[str, nn.Module]:
    return {"encoder": cast(nn.Module, captioner.encoder), "decoder": cast(nn.Module, captioner.decoder)}
