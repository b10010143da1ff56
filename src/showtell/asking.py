"""What a captioner and an ensemble can be asked: captions, how likely some are, which fits best, words as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .caption import Caption
from .captioning import caption_photos
from .constraints import Constraints
from .generate import Ready
from .images import ImageSource
from .photos import Photos, is_many
from .protocols import Decoder, Features
from .ranking import By, Ranking, rank
from .scoring import Given, score
from .search import Search
from .streaming import stream
from .vocabulary import Vocabulary

__all__ = ["Asking"]


class Asking:
    """The methods that a captioner and an ensemble share; each is a function of its own module.

    What they need is `ready`: here that of a captioner with one encoder and one decoder.
    """

    encode: Any
    decoder: Decoder
    vocabulary: Vocabulary
    search: Search

    def ready(self, images: Sequence[Any] | Features) -> Ready:
        """Some photos, or their features, to a decoder and the features it takes."""
        features = images if isinstance(images, Features) else self.encode(images, batch_size=max(1, len(images)))
        return Ready(self.decoder, features)

    def caption(
        self,
        images: Photos,
        *,
        search: Search | str | None = None,
        batch_size: int = 32,
        constraints: Constraints | Sequence[Constraints] | None = None,
    ) -> Caption | list[Caption]:
        """The best caption of each photo: a `Caption` for one photo, a list for several.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> captions = tiny_captioner().caption([torch.rand(3, 32, 32)] * 2, search="beam:3")
            >>> [len(caption.candidates) for caption in captions]
            [3, 3]

        Args:
            images: a path, bytes, an open file, a PIL image, a numpy array (H, W, 3) or a tensor (3, H, W); a list
                of these; or `Features`, which always give a list.
            search: instead of the captioner's own: `Greedy()`, `Beam(size=3)`, `DiverseBeam()`, `Sample(count=5)`, or
                as text: "greedy", "beam:3".
            batch_size: photos at a time, at least 1.
            constraints: what captions must and must not say; a list has one for each photo.

        Raises:
            ImageError: a photo can't be read.
            ArgumentError: an option makes no sense, or no caption can satisfy the constraints.
        """
        found = self.generate(images, search=search, batch_size=batch_size, constraints=constraints)
        results = [best[0] for best in found]
        return results if isinstance(images, Features) or is_many(images) else results[0]

    def generate(
        self,
        images: Photos,
        *,
        search: Search | str | None = None,
        batch_size: int = 32,
        constraints: Constraints | Sequence[Constraints] | None = None,
        positions: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """The n-best captions of each photo, best first; always a list of lists.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> [[best, second, third]] = tiny_captioner().generate(torch.rand(3, 32, 32), search="beam:3")
            >>> best.score >= second.score >= third.score
            True

        Arguments and errors are those of `caption`. `positions`: the photos' numbers among all that are captioned, by
        default 0, 1, ...; a `Sample` with a seed draws by them, so that cutting photos into batches changes nothing.
        """
        return caption_photos(
            self, images, search=search, batch_size=batch_size, constraints=constraints, positions=positions
        )

    def score(
        self, images: Photos, captions: Given | Sequence[Given | Sequence[Given]], *, batch_size: int = 32
    ) -> Caption | list[Caption] | list[Caption | list[Caption]]:
        """How likely given captions are: texts, `Caption.tokens` or Captions; see `showtell.scoring.score`.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> captioner, photo = tiny_captioner(), torch.rand(3, 32, 32)
            >>> scored = captioner.score(photo, "a dog runs")
            >>> len(scored.token_log_probs), scored.log_prob == sum(scored.token_log_probs)
            (4, True)

        One photo and one caption give a Caption, with a list of captions a list; a list of photos has a list of
        captions, or of lists of them. Raises ArgumentError for captions without words, of unknown tokens or of more
        than 1000, ImageError for a photo that can't be read.
        """
        return score(self, images, captions, batch_size=batch_size)

    def rank(
        self,
        images: Photos,
        captions: Sequence[Given],
        *,
        by: By = "log_prob",
        background: Photos | None = None,
        batch_size: int = 32,
    ) -> Ranking:
        """Every caption on every photo, and the orders: captions for a photo, photos for a caption.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> ranking = tiny_captioner().rank([torch.rand(3, 32, 32)] * 2, ["a dog", "two men on a bike"])
            >>> ranking.caption_order.shape, ranking.image_order.shape
            (torch.Size([2, 2]), torch.Size([2, 2]))

        `by`: "log_prob", "per_token" or "pmi", which corrects for captions that suit any photo by their mean
        probability over `background` (default: `images`). Errors are those of `score`; see `showtell.ranking.rank`.
        """
        return rank(self, images, captions, by=by, background=background, batch_size=batch_size)

    def stream(
        self,
        image: ImageSource | Features,
        *,
        search: Search | str | None = None,
        constraints: Constraints | None = None,
    ) -> Iterator[str]:
        """The caption of one photo, word by word as the decoder says it; the pieces joined are the caption's text.

        Example:
            >>> from showtell.testing import tiny_captioner
            >>> import torch
            >>> captioner, photo = tiny_captioner(), torch.rand(3, 32, 32)
            >>> "".join(captioner.stream(photo)) == captioner.caption(photo, search="greedy").text
            True

        `search`: `Greedy()` or `Sample(...)` of one caption, the only ones that don't change their mind; by default
        the captioner's own if it is one of them, else greedy. Each piece comes with the space before it, if there is
        one. Raises ArgumentError for other searches and for several photos; see `showtell.streaming.stream`.
        """
        return stream(self, image, search=search, constraints=constraints)
