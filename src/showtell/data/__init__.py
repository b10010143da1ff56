"""Data: records, readers, the feature cache and batches."""

from .augment import Augmentation, Augmented
from .batches import Batch, Batches, Shard, prefetched
from .cache import FeatureCache
from .inputs import CachedInputs, ImageInputs
from .objects import from_objects
from .readers import read_dataset
from .records import Dataset, Problem, Record

__all__ = [
    "Augmentation",
    "Augmented",
    "Batch",
    "Batches",
    "CachedInputs",
    "Dataset",
    "FeatureCache",
    "ImageInputs",
    "Problem",
    "Record",
    "Shard",
    "from_objects",
    "prefetched",
    "read_dataset",
]
