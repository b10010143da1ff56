"""Every search with every decoder: batched as one by one, log-probabilities as teacher forcing has them."""

from __future__ import annotations

import pytest
import torch

from showtell import Beam, Constraints, DiverseBeam, Greedy, Sample
from showtell.search import Search
from showtell.testing import tiny_captioner
from test_constraints import obeys, teacher_forced

SEARCHES: list[Search] = [
    Greedy(10),
    Beam(3, 10, 0.7),
    Beam(5, 10, 1.0, "gnmt"),
    DiverseBeam(6, 3, 0.5, 10),
    Sample(4, 1.2, top_p=0.95, seed=3, max_length=10),
]


@pytest.mark.parametrize("name", ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"])
@pytest.mark.parametrize("constrained", [False, True])
def test_captions_equal_those_of_one_photo_at_a_time_and_of_teacher_forcing(name: str, constrained: bool) -> None:
    captioner = tiny_captioner(decoder=name).eval()
    torch.manual_seed(0)
    features = captioner.encode(list(torch.rand(6, 3, 32, 32)))
    for search in SEARCHES:
        force = ["dog", ("ball", "grass")] if isinstance(search, Beam) else []
        wish = Constraints(min_length=4, no_repeat_ngram=2, prefix="a", forbid=["red"], force=force)
        asked = wish if constrained else None
        together = captioner.generate(features, search=search, constraints=asked)
        alone = captioner.generate(features, search=search, constraints=asked, batch_size=1)
        for photo, (many, few) in enumerate(zip(together, alone, strict=True)):
            assert [caption.tokens for caption in many] == [caption.tokens for caption in few]
            for caption in many:
                if constrained:
                    obeys(caption, wish, 10)
                forced = teacher_forced(captioner, features, caption, photo)
                assert caption.token_log_probs == pytest.approx(forced.tolist(), abs=2e-4)
