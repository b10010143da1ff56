"""What teachers say about every word of the training captions: computed once, kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..captioner import Captioner
from ..data import Batches, ImageInputs, Record
from ..data.trunk import Trunk
from ..errors import ArgumentError
from ..generate import evaluating
from ..progress import bar
from ..protocols import Encoder, Features, SplitEncoder
from ..storage import write_file
from ..vocabulary import Vocabulary
from .assemble import fingerprint

__all__ = ["SoftTargets", "Taught"]

_KEPT = 32
_AT_ONCE = 32


class Taught(NamedTuple):
    """Of R captions in T steps: ids (R, T, k) int64 of the likeliest words and their probabilities (R, T, k) float32.

    Padding has probabilities of 0.
    """

    ids: Tensor
    probabilities: Tensor


class SoftTargets:
    """The mean distribution of some captioners, the teachers, at each word of the training captions.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> teacher = tiny_captioner()
        >>> records = [Record("a", torch.rand(3, 40, 40), ("a dog", "a cat"), "train", "made up")]
        >>> batches = Batches(records, teacher.vocabulary, lambda positions: torch.zeros(1, 3, 32, 32), trunk=False)
        >>> taught = SoftTargets.of([teacher], records, batches, show=False).of_captions(torch.tensor([1, -1]), 4)
        >>> taught.ids.shape[:2], [round(float(p), 3) for p in taught.probabilities.sum(2)[0]]
        (torch.Size([2, 4]), [1.0, 1.0, 1.0, 0.0])

    Of each distribution the 32 likeliest words are kept, in half precision: about 1.6 kB a caption of 12 words.
    """

    def __init__(self, begins: Tensor, ids: Tensor, probabilities: Tensor) -> None:
        """begins (captions + 1) int64: where each caption's steps begin; ids, probabilities (steps, k)."""
        self.begins, self.ids, self.probabilities = begins, ids, probabilities

    def of_captions(self, numbers: Tensor, steps: int) -> Taught:
        """The distributions of some captions, by number (R,) int64, -1 for padding; `steps` is how wide to make it."""
        numbers = numbers.cpu()
        begins = self.begins[numbers.clamp(min=0)]
        lengths = torch.where(numbers >= 0, self.begins[numbers.clamp(min=0) + 1] - begins, 0)
        places = torch.arange(steps)
        real = places < lengths.unsqueeze(1)
        rows = torch.where(real, begins.unsqueeze(1) + places, 0)
        return Taught(self.ids[rows].long(), self.probabilities[rows].float() * real.unsqueeze(2))

    @classmethod
    def of(
        cls,
        teachers: Sequence[Captioner],
        records: Sequence[Record],
        batches: Batches,
        *,
        bf16: bool = False,
        show: bool | None = None,
        say: Callable[[str], None] | None = None,
    ) -> SoftTargets:
        """Ask the teachers, without dropout, about all captions of `batches`, which are those of `records`.

        Each photo is read once, and encoded once for all teachers with the same trunk; bf16: where autocast allows.
        Raises ArgumentError for a teacher whose trunk has trainable parameters, DataError for photos that can't be
        read.
        """
        specs = {one.encoder.image_spec for one in teachers}
        trunks = [Trunk(one.encoder).key() for one in teachers]
        kept: list[tuple[Tensor, Tensor]] = []
        lengths: list[int] = []
        with bar(len(records), "asking the teachers", unit="photo", show=show, say=say) as progress:
            for start in range(0, len(records), _AT_ONCE):
                some = range(start, min(len(records), start + _AT_ONCE))
                pixels = {spec: ImageInputs(records, spec)(some) for spec in specs}
                of_photos = batches.references(some)
                slots = max(map(len, of_photos))
                captions = [
                    ids[: batches.max_length] for each in of_photos for ids in (*each, *[()] * (slots - len(each)))
                ]
                lengths += [len(ids) for ids in captions if ids]
                kept.append(_likeliest(_mean(teachers, trunks, pixels, captions, bf16), captions))
                progress.update(len(some))
        begins = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths).cumsum(0)])
        return cls(begins, torch.cat([ids for ids, _ in kept]), torch.cat([chances for _, chances in kept]))

    @classmethod
    def cached(
        cls,
        path: Path,
        teachers: Sequence[str | os.PathLike[str]],
        records: Sequence[Record],
        batches: Batches,
        *,
        vocabulary: Vocabulary,
        device: torch.device,
        bf16: bool = False,
        show: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> SoftTargets:
        """Those in the file where they are of these teachers, captions and photos; else asked anew and written there.

        teachers: folders of captioners. Raises ArgumentError when one has other words, and what `from_pretrained` and
        `of` raise.
        """
        asked = [Captioner.from_pretrained(teacher).requires_grad_(False) for teacher in teachers]
        for place, one in enumerate(asked):
            if one.vocabulary.fingerprint() != vocabulary.fingerprint():
                raise ArgumentError(
                    f"the teacher {teachers[place]} has {len(one.vocabulary):,} words and the captioner to be trained "
                    f"has {len(vocabulary):,}, or others; train both on the same data with the same [vocabulary]"
                )
        digest = hashlib.sha256(json.dumps([fingerprint(one) for one in asked]).encode())
        digest.update(json.dumps([[record.id for record in records], batches.max_length, _KEPT, bf16]).encode())
        digest.update(json.dumps(batches.references(range(len(records)))).encode())
        names = ("begins", "ids", "probabilities")
        with (
            contextlib.suppress(OSError, EOFError, ValueError, KeyError, BadZipFile),
            np.load(path, allow_pickle=False) as file,
        ):
            if str(file["key"]) == digest.hexdigest():
                return cls(*(torch.from_numpy(file[name]) for name in names))
        say(f"asking {len(asked)} teachers about the captions of {len(records):,} photos")
        made = cls.of([one.to(device) for one in asked], records, batches, bf16=bf16, show=show, say=say)
        content = io.BytesIO()
        np.savez(content, key=digest.hexdigest(), **{name: getattr(made, name).numpy() for name in names})
        write_file(path, content.getvalue())
        return made


def _mean(
    teachers: Sequence[Captioner],
    trunks: Sequence[str],
    pixels: dict[Any, Tensor],
    captions: Sequence[Sequence[int]],
    bf16: bool,
) -> Tensor:
    """The mean probabilities (R, T, V) of the words of R captions, as many of each photo; missing ones are empty."""
    words = teachers[0].vocabulary
    width = max(map(len, captions))
    tokens = torch.full((len(captions), width), words.pad_id)
    for row, ids in enumerate(captions):
        tokens[row, : len(ids)] = torch.tensor([words.start_id, *ids[:-1]][: len(ids)])
    encoded: dict[str, Features] = {}
    total: Tensor | None = None
    for one, trunk in zip(teachers, trunks, strict=True):
        with (
            torch.inference_mode(),
            evaluating(one),
            torch.autocast(one.device.type, torch.bfloat16, enabled=bf16),
        ):
            encoder: Encoder = one.encoder
            photos = pixels[encoder.image_spec].to(one.device)
            if isinstance(encoder, SplitEncoder):
                if trunk not in encoded:
                    encoded[trunk] = encoder.trunk(photos)
                features = encoder.head(encoded[trunk])
            else:
                features = encoder(photos)
            decoder = cast(Any, one.decoder)
            said = decoder(tokens.to(one.device), decoder.prepare(features)).logits.float().softmax(2)
            total = said if total is None else total + said
    assert total is not None
    return total / len(teachers)


def _likeliest(probabilities: Tensor, captions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(R, T, V) -> the likeliest words of each real step, caption after caption: ids and probabilities (steps, k)."""
    lengths = torch.tensor([len(ids) for ids in captions], device=probabilities.device)
    real = torch.arange(probabilities.shape[1], device=probabilities.device) < lengths.unsqueeze(1)
    chances, ids = probabilities[real].topk(min(_KEPT, probabilities.shape[2]), dim=1)
    return ids.int().cpu(), chances.half().cpu()
