"""When memory runs out: the same step, fewer photos at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import RunError
from ..ranks import Ranks

__all__ = ["Room", "agree", "norm_statistics", "out_of_memory", "put_back"]

_CPU = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_GPU = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
_FIXES = (
    '(1) precision = "bf16" (on a GPU), which halves what a photo takes; (2) fewer or shorter captions a photo: '
    "captions and max_length in [batch]; (3) train less, or a smaller model: train_encoder = false or its last parts "
    "only, a smaller encoder or decoder"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory ran out, on a GPU or in the computer itself.

    Example:
        >>> out_of_memory(torch.OutOfMemoryError("CUDA out of memory")), out_of_memory(RuntimeError("bad shape"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) in (RuntimeError, torch.AcceleratorError) and any(sign in str(error) for sign in _CPU + _GPU)


class Room:
    """How many photos fit into memory at a time, as far as is known.

    Example:
        >>> room = Room()
        >>> room.photos is None
        True

    photos: the most at a time, or None while whole batches have fitted.
    """

    def __init__(self, photos: int | None = None) -> None:
        """What is known already."""
        self.photos = photos
        self._trying: Any = None

    def parts(self, batch: Any) -> Iterator[Any]:
        """The batch in parts of at most `photos` photos, or the batch itself."""
        self._trying = batch
        count = getattr(batch, "photo_count", None)
        if self.photos is None or count is None or count <= self.photos:
            yield batch
        else:
            for start in range(0, count, self.photos):
                self._trying = batch.part(start, min(count, start + self.photos))
                yield self._trying
        self._trying = None

    def shrink(self, step: int, error: BaseException) -> None:
        """After memory ran out: half as many photos at a time; raises RunError when it was a single one."""
        tried = getattr(self._trying, "photo_count", None)
        self._trying = None
        if tried is None:
            raise RunError(
                f"step {step}: memory ran out, and a batch of this kind can't be cut (it has no `photo_count` and no "
                f"`part`, as Batch has). Make smaller batches and accumulate more of them, or: {_FIXES}. What torch "
                f"says: {error!s:.300}"
            ) from error
        if tried <= 1:
            raise RunError(
                f"step {step}: memory runs out even with one photo at a time. Three fixes: {_FIXES}. What torch says: "
                f"{error!s:.300}"
            ) from error
        self.photos = -(-int(tried) // 2)


def norm_statistics(modules: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """What the batch norms in training mode have counted so far: (buffer, its copy)."""
    norms = [module for module in modules if isinstance(module, _BatchNorm) and module.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]


@torch.no_grad()
def put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    """Undo what a step that wasn't finished has counted."""
    for buffer, copy in statistics:
        buffer.copy_(copy)


@torch.no_grad()
def agree(ranks: Ranks, statistics: list[tuple[Tensor, Tensor]], rows: int) -> None:
    """Make what batch norms have counted equal in all processes: the mean, each weighing as many rows as it had."""
    if ranks.count == 1 or not statistics:
        return
    counts = [int(buffer) for buffer, _ in statistics if not buffer.is_floating_point()]
    found = ranks.every(lambda: (rows, counts))
    share = rows / sum(each for each, _ in found)
    means = [buffer for buffer, _ in statistics if buffer.is_floating_point()]
    for buffer in means:
        buffer.mul_(share)
    ranks.add_up(means)
    whole = [buffer for buffer, _ in statistics if not buffer.is_floating_point()]
    for buffer, values in zip(whole, zip(*(each for _, each in found), strict=True), strict=True):
        buffer.fill_(max(values))
