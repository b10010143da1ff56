"""showtell: photo in, sentence out.

Example:
    >>> import showtell
    >>> captioner = showtell.Captioner.default()
"""

from .captioner import Caption, Captioner
from .data import Batch, Batches, Dataset, FeatureCache, Problem, Record, from_objects, read_dataset
from .encoders import create_pretrained
from .errors import (
    ArgumentError,
    ComponentError,
    DataError,
    FormatError,
    HubError,
    ImageError,
    MissingPackageError,
    NotFoundError,
    RunError,
    ShowtellError,
)
from .evaluate import Evaluation, evaluate
from .generate import generate
from .image_spec import ImageSpec
from .images import load_image
from .protocols import Decoder, Encoder, Features, Forced, SplitEncoder
from .registry import register_decoder, register_encoder
from .rows import Rows
from .search import Beam, Greedy, Hypotheses
from .training import CrossEntropy, Recipe, Trainer, train
from .version import __version__
from .vocabulary import Vocabulary

__all__ = [
    "ArgumentError",
    "Batch",
    "Batches",
    "Beam",
    "Caption",
    "Captioner",
    "ComponentError",
    "CrossEntropy",
    "DataError",
    "Dataset",
    "Decoder",
    "Encoder",
    "Evaluation",
    "FeatureCache",
    "Features",
    "Forced",
    "FormatError",
    "Greedy",
    "HubError",
    "Hypotheses",
    "ImageError",
    "ImageSpec",
    "MissingPackageError",
    "NotFoundError",
    "Problem",
    "Recipe",
    "Record",
    "Rows",
    "RunError",
    "ShowtellError",
    "SplitEncoder",
    "Trainer",
    "Vocabulary",
    "__version__",
    "create_pretrained",
    "evaluate",
    "from_objects",
    "generate",
    "load_image",
    "read_dataset",
    "register_decoder",
    "register_encoder",
    "train",
]
