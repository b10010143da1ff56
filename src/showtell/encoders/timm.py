"""Any backbone of timm (the extra "timm"); the only importer of timm."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import ArgumentError, HubError, MissingPackageError
from ..image_spec import ImageSpec
from .base import BackboneEncoder, Interpolation, Resize, build_shapes_or_real, fill, make_image_spec

__all__ = ["TimmEncoder"]
