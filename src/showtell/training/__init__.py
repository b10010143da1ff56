"""Training: objectives, the trainer, recipes, and `train`, the one call for people."""

from .distillation import Distillation
from .log_writers import LogWriter
from .objectives import CrossEntropy, DoublyStochastic, ForcedObjective, Objective, Term
from .prefixes import Prefixes
from .recipe import Recipe
from .recipe_files import list_recipes, load_recipe, recipe_text
from .rewards import MixedReward
from .run import TrainResult, train
from .schedule import InverseSigmoidRise, LinearRise, WarmupCosine
from .scheduled_sampling import ScheduledSampling
from .self_critical import SelfCritical
from .soft_targets import SoftTargets
from .trainer import BatchSource, StepReport, Trainer
from .vocab_transfer import with_vocabulary

__all__ = [
    "BatchSource",
    "CrossEntropy",
    "Distillation",
    "DoublyStochastic",
    "ForcedObjective",
    "InverseSigmoidRise",
    "LinearRise",
    "LogWriter",
    "MixedReward",
    "Objective",
    "Prefixes",
    "Recipe",
    "ScheduledSampling",
    "SelfCritical",
    "SoftTargets",
    "StepReport",
    "Term",
    "TrainResult",
    "Trainer",
    "WarmupCosine",
    "list_recipes",
    "load_recipe",
    "recipe_text",
    "train",
    "with_vocabulary",
]
