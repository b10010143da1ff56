"""The stages of an encoder's trunk, from the photo to the head, and its batch norms: what fine-tuning treats apart."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..protocols import Encoder, SplitEncoder

__all__ = ["trunk_norms", "trunk_stages"]

_MAIN = 0.9


def trunk_stages(encoder: nn.Module, trunk: Collection[str]) -> list[list[str]]:
    """The names of the trunk's parameters, stage by stage, the one next to the photo first.

    Example:
        >>> body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 8, 3)))
        >>> trunk_stages(body, dict(body.named_parameters()))
        [['0.weight', '0.bias', '1.weight', '1.bias'], ['2.0.weight', '2.0.bias']]

    The stages are the parts of the main module: from the encoder down, as long as one part holds nine tenths of the
    weights, that part is looked into. What lies before it is a stage of its own (the stem), what lies after it belongs
    to the last one. A single layer that holds vectors only, such as a norm, belongs to the stage before it. So a
    ResNet has its first convolution and layer1 .. layer4, a vision transformer a stem and its blocks.

    trunk: names of the encoder's parameters, as `named_parameters` has them; what isn't named is left out.
    """
    known = {name: parameter for name, parameter in encoder.named_parameters() if name in trunk}
    node, prefix = encoder, ""
    stem: list[str] = []
    tail: list[str] = []
    while True:
        here = [name for name in known if name.startswith(prefix) and name not in tail]
        parts = [(name, child, [n for n in here if n.startswith(f"{prefix}{name}.")]) for name, child in _named(node)]
        parts = [part for part in parts if part[2]]
        inside = {name for part in parts for name in part[2]}
        stem += [name for name in here if name not in inside]
        total = sum(known[name].numel() for name in inside)
        sizes = [sum(known[name].numel() for name in part[2]) for part in parts]
        main = next((i for i, size in enumerate(sizes) if size >= _MAIN * total and _named(parts[i][1])), None)
        if main is None:
            break
        stem += [name for part in parts[:main] for name in part[2]]
        tail = [name for part in parts[main + 1 :] for name in part[2]] + tail
        node, prefix = parts[main][1], f"{prefix}{parts[main][0]}."
    stages = [stem] if stem else []
    for _, child, names in parts:
        single = not _named(child) and all(known[name].ndim < 2 for name in names)
        if single and stages:
            stages[-1] = stages[-1] + names
        else:
            stages.append(names)
    if tail and stages:
        stages[-1] = stages[-1] + tail
    return stages


def _named(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(module.named_children())


def trunk_norms(encoder: Encoder) -> list[nn.Module]:
    """The batch norms that a photo passes before the head; of an encoder without a head, all of them.

    They are found by sending one black photo through the trunk, in evaluation mode.
    """
    module = cast(nn.Module, encoder)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if not norms or not isinstance(encoder, SplitEncoder):
        return list(norms)
    passed: list[nn.Module] = []
    training = [part for part in module.modules() if part.training]
    hooks = [norm.register_forward_pre_hook(lambda norm, _: passed.append(norm)) for norm in norms]
    spec = encoder.image_spec
    like = next(module.parameters())
    module.eval()
    try:
        with torch.no_grad():
            encoder.trunk(torch.zeros(1, 3, spec.height, spec.width, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    return [norm for norm in norms if any(norm is each for each in passed)]
