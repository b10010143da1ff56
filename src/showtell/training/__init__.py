"""Training: objectives, the trainer, recipes, and `train`, the one call for people."""

from .objectives import CrossEntropy, DoublyStochastic, ForcedObjective, Objective, Term
from .prefixes import Prefixes
from .recipe import Recipe
from .recipe_files import list_recipes, load_recipe, recipe_text
from .run import TrainResult, train
from .schedule import WarmupCosine
from .trainer import BatchSource, StepReport, Trainer
from .vocab_transfer import with_vocabulary

__all__ = [
    "BatchSource",
    "CrossEntropy",
    "DoublyStochastic",
    "ForcedObjective",
    "Objective",
    "Prefixes",
    "Recipe",
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
