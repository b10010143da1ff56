"""Caption photos from Python: python examples/caption_photos.py [PHOTO ...]."""

import sys
from pathlib import Path

from showtell import Beam, Captioner

photos = sys.argv[1:] or sorted(str(p) for p in (Path(__file__).parent / "images").glob("*.jpg"))
captioner = Captioner.default()
for photo, caption in zip(photos, captioner.caption(photos, search=Beam(size=3)), strict=True):
    print(f"{Path(photo).name}: {caption}")
    for other in caption.candidates[1:]:
        print(f"    or: {other}  ({other.log_prob:.1f})")
    words = zip(caption.tokens, caption.token_log_probs, strict=True)
    print("    least sure of:", min(words, key=lambda pair: pair[1])[0])
