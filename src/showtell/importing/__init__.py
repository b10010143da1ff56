"""Checkpoints and vocabularies of other captioners, turned into showtell's; nothing in them is run."""

from .tutorials import import_checkpoint
from .words import Words, read_words

__all__ = ["Words", "import_checkpoint", "read_words"]
