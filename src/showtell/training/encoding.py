"""The encoder that a recipe asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from .. import encoders
from ..captioner import Captioner
from .recipe import Recipe

__all__ = ["make_encoder"]


def make_encoder(
    recipe: Recipe, encoder: str | nn.Module | None, *, grid: bool, say: Callable[[str], None] = print
) -> Any:
    """The given encoder (a copy), the one of that name, or the recipe's own, with a grid if asked.

    Example:
        >>> from showtell.training import load_recipe
        >>> recipe = load_recipe("default").changed({"head_dim": 64, "pretrained": False})
        >>> make_encoder(recipe, "efficientnet-lite0", grid=False).feature_dim
        64

    An encoder object is taken as it is; that the recipe's settings of size and head don't reach it is said. Random
    weights are drawn from torch's global generator.
    """
    chosen = recipe.encoder if encoder is None else encoder
    options = recipe.encoder_options()
    if isinstance(chosen, nn.Module):
        if options or not recipe.pretrained:
            asked = ", ".join([*options, *([] if recipe.pretrained else ["pretrained = false"])])
            say(f"the given encoder is taken as it is, whatever the recipe says of its {asked}")
        return copy.deepcopy(chosen)
    if grid:
        options["grid"] = True
    if chosen == "default":
        return _bundled(options, recipe.pretrained)
    if "image_size" in options and chosen.partition(":")[0] in ("torchvision", "timm"):
        options["height"] = options.pop("image_size")
    make = encoders.create_pretrained if recipe.pretrained else encoders.create_untrained
    return make(chosen, **options)


def _bundled(options: dict[str, Any], pretrained: bool) -> Any:
    """The bundled captioner's trunk, or a random one, without what that captioner learnt behind it."""
    encoder: Any = Captioner.default().encoder
    if not pretrained:
        return encoders.create_untrained(f"efficientnet-lite{encoder.config()['variant']}", **options)
    other = type(encoder)(**{**encoder.config(), "grid": False, "head": None, **options})
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    return other
