"""Batch norms folded into the convolutions before: fewer passes over the maps, the same numbers but for rounding."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["fold_batch_norms", "lay_out"]


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
    other steps share, subclasses of BatchNorm2d, what has hooks, and convolutions that don't use their weight as it
    stands (weight norm, weight standardisation) or whose weight is read elsewhere. In float16 and bfloat16 the products
    are rounded.
    """
    # By name, all names of a weight that has several.
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    try:
        # A copy, all but its parameters: a forward that keeps something of its input would keep what stands in for it.
        graph = _Tracer().trace(copy.deepcopy(module, {id(each): each for each in module.parameters()}))
    except Exception:  # what a foreign forward does with a proxy can end in any exception
        return 0
    read = {id(tensors.get(str(node.target))) for node in graph.nodes if node.op == "get_attr"}
    parts = dict(module.named_modules(remove_duplicate=False))
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
        if not _plain(conv, read) or not _plain(norm, read):
            continue
        with torch.no_grad():
            fused = fuse_conv_bn_eval(conv, norm)
            if not _agree(fused, conv, norm):
                continue
        _replace(module, str(before.target), fused)
        _replace(module, str(node.target), nn.Identity())
        folded += 1
    return folded


def lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Bring the weights of convolutions, and no others, into a memory format such as torch.channels_last, in place.

    Example:
        >>> net = nn.Conv2d(3, 8, 3)
        >>> lay_out(net, torch.channels_last)
        >>> net.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.to(memory_format=memory_format)


def _plain(part: nn.Module, read: set[int]) -> bool:
    """Whether a module has no hooks, weights of its own, and nobody else reads them."""
    hooks = part._forward_hooks or part._forward_pre_hooks
    return not hooks and not is_parametrized(part) and not any(id(each) in read for each in part.parameters())


def _agree(fused: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a convolution with the norm in it gives what both give: one whose forward changes its weight doesn't."""
    height, width = ((size - 1) * step + 2 for size, step in zip(conv.kernel_size, conv.dilation, strict=True))
    shape = (1, conv.in_channels, height, width)
    probe = torch.arange(math.prod(shape), dtype=torch.float32).mul_(0.7).sin_().view(shape).to(conv.weight)
    try:
        expected = norm(conv(probe)).float()
        error = (fused(probe).float() - expected).norm()
    except Exception:  # a foreign forward may take other maps only
        return False
    near = max(0.01, torch.finfo(conv.weight.dtype).eps ** 0.5)  # a GPU's TF32 rounds float32 to 11 bits
    return bool(error <= near * (expected.norm() + 1e-6))


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)
