"""showtell: photo in, sentence out.

Example:
    >>> import showtell
    >>> captioner = showtell.Captioner.default()
"""

from .captioner import Caption, Captioner
from .constraints import Constraints
from .data import Batch, Batches, Dataset, FeatureCache, Problem, Record, from_objects, read_dataset
from .deprecation import Moved, finder
from .doctor import diagnose
from .encoders import create_pretrained
from .ensemble import Ensemble
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
from .evaluation import Evaluation, ScoredPhoto, Signature, compare, evaluate, score_predictions, write_report
from .generate import generate
from .image_spec import ImageSpec
from .images import load_image
from .metrics import CiderD, Scores, ptb_tokenize, score_captions
from .plots import plot_attention
from .protocols import Decoder, Encoder, Features, Forced, SplitEncoder
from .ranking import Ranking
from .registry import register_decoder, register_encoder
from .rows import Rows
from .search import Beam, DiverseBeam, Greedy, Hypotheses, Sample
from .training import CrossEntropy, Recipe, Trainer, train
from .version import __version__
from .vocabulary import Vocabulary

_MOVED: dict[str, Moved] = {}
__getattr__ = finder("showtell", _MOVED, globals())

__all__ = [
    "ArgumentError",
    "Batch",
    "Batches",
    "Beam",
    "Caption",
    "Captioner",
    "CiderD",
    "ComponentError",
    "Constraints",
    "CrossEntropy",
    "DataError",
    "Dataset",
    "Decoder",
    "DiverseBeam",
    "Encoder",
    "Ensemble",
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
    "Ranking",
    "Recipe",
    "Record",
    "Rows",
    "RunError",
    "Sample",
    "ScoredPhoto",
    "Scores",
    "ShowtellError",
    "Signature",
    "SplitEncoder",
    "Trainer",
    "Vocabulary",
    "__version__",
    "compare",
    "create_pretrained",
    "diagnose",
    "evaluate",
    "from_objects",
    "generate",
    "load_image",
    "plot_attention",
    "ptb_tokenize",
    "read_dataset",
    "register_decoder",
    "register_encoder",
    "score_captions",
    "score_predictions",
    "train",
    "write_report",
]
