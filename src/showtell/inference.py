"""Batch norms folded into the convolutions before: fewer passes over the maps, the same numbers but for rounding."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norms"]

M = TypeVar("M", bound=nn.Module)


class _Tracer(fx.Tracer):
    """Looks into modules down to convolutions and batch norms, whoever's subclass they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether to take a module as one step."""
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norms(module: nn.Module) -> int:
    """Fold each batch norm that reads nothing but a convolution into that convolution, in place; returns how many.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norms(net), type(net[1]).__name__
        (1, 'Identity')

    With the running mean m, variance v, scale g and shift b of a channel, g (w * x + a - m) / sqrt(v + eps) + b is
    the convolution of w g / sqrt(v + eps) with bias (a - m) g / sqrt(v + eps) + b. The module must be in evaluation
    mode. One whose forward torch.fx can't trace, as it depends on values, stays as it is, and so do batch norms that
    other steps share, subclasses of BatchNorm2d, and convolutions that don't use their weight as it stands (weight
    norm, weight standardisation). In float16 and bfloat16 the products are rounded.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(module)
    except Exception:  # what a foreign forward does with a proxy can end in any exception
        return 0
    parts = dict(module.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(parts[str(node.target)]) for node in calls)
    folded = 0
    for node in calls:
        norm = parts[str(node.target)]
        before: Any = node.args[0] if node.args else None
        if type(norm) is not nn.BatchNorm2d or norm.training or not norm.track_running_stats:
            continue
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv = parts[str(before.target)]
        if not isinstance(conv, nn.Conv2d) or times[id(conv)] != 1 or times[id(norm)] != 1:
            continue
        if conv._parameters.get("weight") is None:  # made anew at each call, by weight norm for instance
            continue
        with torch.no_grad():
            fused = fuse_conv_bn_eval(conv, norm)
            if not _agree(fused, conv, norm):
                continue
        _replace(module, str(before.target), fused)
        _replace(module, str(node.target), nn.Identity())
        folded += 1
    return folded


def _agree(fused: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a convolution with the norm in it gives what both give: one whose forward changes its weight doesn't."""
    height, width = ((size - 1) * step + 2 for size, step in zip(conv.kernel_size, conv.dilation, strict=True))
    shape = (1, conv.in_channels, height, width)
    probe = torch.arange(math.prod(shape), dtype=torch.float32).mul_(0.7).sin_().view(shape).to(conv.weight)
    expected = norm(conv(probe)).float()
    error = (fused(probe).float() - expected).norm()
    near = max(0.01, torch.finfo(conv.weight.dtype).eps ** 0.5)  # a GPU's TF32 rounds float32 to 11 bits
    return bool(error <= near * (expected.norm() + 1e-6))


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
