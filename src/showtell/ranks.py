"""Several processes that do one piece of work: who this one is, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count as numbers
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ArgumentError, RunError

__all__ = ["ALONE", "Place", "Ranks", "joined", "local_device", "place"]

T = TypeVar("T")

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(hours=6)
"""How long a process waits for the others; one that has died is noticed at once."""
_BUCKET = 2**24
_groups = numbers()


class Place(NamedTuple):
    """rank: which process this is, from 0. of: how many there are. local: which one on its machine."""

    rank: int
    of: int
    local: int


def place() -> Place:
    """What the group that the caller has joined says, or else torchrun's environment; alone without either.

    Example:
        >>> place()
        Place(rank=0, of=1, local=0)

    Raises RunError when the environment makes no sense.
    """
    if dist.is_available() and dist.is_initialized():
        rank, count = dist.get_rank(), dist.get_world_size()
    elif all(os.environ.get(name) for name in _NAMES):
        rank, count = _number("RANK"), _number("WORLD_SIZE")
    else:
        return Place(0, 1, 0)
    local = _number("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else rank % max(1, torch.cuda.device_count())
    if not 0 <= rank < count:
        raise RunError(f"RANK={rank} of WORLD_SIZE={count} makes no sense: ranks are 0..{max(0, count - 1)}")
    return Place(rank, count, local)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise RunError(f"{name}={os.environ[name]!r:.60} in the environment is no number; torchrun sets it") from error


def local_device(name: str, device: str | torch.device | None) -> str | torch.device | None:
    """The device of this process: where several share a machine, "cuda" is the GPU of its number.

    Example:
        >>> local_device("device", "cpu"), local_device("device", None)
        ('cpu', None)

    `name` is what errors call the option. Raises ArgumentError when the machine has too few GPUs, or one of them is
    named for all processes.
    """
    here = place()
    where = str(device)
    if here.of == 1 or where.partition(":")[0] != "cuda":
        return device
    if where != "cuda":
        raise ArgumentError(f"{name} {where}: each of {here.of} processes takes a GPU of its own; say cuda")
    found = torch.cuda.device_count()
    if found > 1 and here.local >= found:
        raise ArgumentError(
            f"process {here.local + 1} of this machine has no GPU, it has {found}; use --nproc-per-node={found}"
        )
    return f"cuda:{here.local if found > 1 else 0}"  # a launcher may show each process its own GPU only


class Ranks:
    """The processes of a run, seen by one of them; alone, everything is done at once and costs nothing.

    Example:
        >>> ranks = Ranks()
        >>> ranks.first, ranks.own([5, 6, 7]), ranks.every(lambda: 3)
        (True, [5, 6, 7], [3])

    Every method but `own` must be called by all processes, in the same order. What is exchanged is put together in the
    order of the ranks, so all of them get the same bits.

    rank, count, local: those of its `Place`. first: whether this is rank 0, which writes and speaks for all.
    """

    def __init__(self, here: Place = Place(0, 1, 0), group: Any = None) -> None:  # noqa: B008 - a tuple
        """Name the place; `group` is one of `torch.distributed` that takes tensors of the CPU."""
        self.rank, self.count, self.local = here
        self.first = self.rank == 0
        self._group = group

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list: each `count`th one."""
        return items[self.rank :: self.count]

    def woven(self, results: Sequence[T]) -> list[T]:
        """What all made of their own shares, in the order of the whole list."""
        shares = self._gather(list(results))
        longest = max(map(len, shares))
        return [share[i] for i in range(longest) for share in shares if i < len(share)]

    def every(self, work: Callable[[], T]) -> list[T]:
        """Do some work, and what came of it in every process.

        The work must exchange nothing itself. What it raises in one process is raised there; the others get a RunError
        that says so.
        """
        if self.count == 1:
            return [work()]
        result: tuple[T | None, str | None]
        caught: Exception | None = None
        try:
            result = (work(), None)
        except Exception as error:  # whatever it is, the others must hear of it
            caught, result = error, (None, f"{type(error).__name__}: {error!s:.1000}")
        found = self._gather(result)
        if caught is not None:
            raise caught
        for rank, (_, problem) in enumerate(found):
            if problem is not None:
                raise RunError(f"process {rank + 1} of {self.count} can't go on, so none can. It says: {problem}")
        return [value for value, _ in found]  # type: ignore[misc]

    def first_does(self, work: Callable[[], T]) -> T:
        """What the first process makes of some work, for all; what it raises stops all."""
        return self.every(lambda: work() if self.first else None)[0]  # type: ignore[return-value]

    @contextmanager
    def turns(self, *, local: bool = False) -> Iterator[None]:
        """The first process goes first, then the others at once: what it writes they only read.

        local: the first one of each machine, for what is kept on each.
        """
        leads = self.local == 0 if local else self.first
        if not leads:
            self.meet()
        yield
        if leads:
            self.meet()

    def meet(self) -> None:
        """Wait until all are here."""
        self._gather(None)

    def same(self, facts: Mapping[str, Any], advice: str) -> None:
        """Check that some facts are equal everywhere; raises RunError with the names of those that aren't."""
        for rank, other in enumerate(found := self._gather(dict(facts))):
            differing = [name for name in facts if other.get(name) != found[0].get(name)]
            if differing:
                raise RunError(
                    f"process {rank + 1} of {self.count} has another {', '.join(differing)} than the first; {advice}"
                )

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Make each tensor the sum of those of all processes, in place, many at a time."""
        if self.count == 1:
            return
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for tensor in tensors:
            bucket = alike.setdefault((tensor.device, tensor.dtype), [])
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= _BUCKET:
                self._add_up(alike.pop((tensor.device, tensor.dtype)))
        for bucket in alike.values():
            self._add_up(bucket)

    @torch.no_grad()
    def _add_up(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        sent = flat if flat.device.type in ("cpu", "cuda") else flat.cpu()
        with _said_plainly():
            dist.all_reduce(sent, group=self._group)
        parts = torch.split(sent.to(flat.device), [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def _gather(self, value: T) -> list[T]:
        """Small values of all processes, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _said_plainly():
            dist.all_gather_object(found, value, group=self._group)
        return found


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun started, for a while; alone without it.

    Example:
        >>> with joined(torch.device("cpu")) as ranks:
        ...     ranks.count
        1

    A group that the caller has joined already is used and left as it is. Tensors of a GPU go through NCCL, all else
    through Gloo. Raises RunError when the others can't be reached.
    """
    here = place()
    if here.of == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise RunError(f"{here.of} processes were started, and this torch was built without torch.distributed")
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    if dist.is_initialized():
        group = dist.new_group(backend=backend, timeout=_PATIENCE)
        try:
            yield Ranks(here, group)
        finally:
            dist.destroy_process_group(group)
        return
    with _said_plainly():
        store, rank, count = next(dist.rendezvous("env://", timeout=timedelta(minutes=10)))  # type: ignore[attr-defined]
        # A store of its own for each time: torchrun's outlives the group, and old keys would confuse the next one.
        own = dist.PrefixStore(f"showtell-{next(_groups)}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Ranks(here)
    except BaseException:
        if device.type != "cuda":  # NCCL would wait for the others here; the end of the process does it
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Torch's errors about processes that are gone, as a RunError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"the other processes can't be reached, or one of them has ended; what it said tells why. What torch says: "
            f"{error!s:.300}"
        ) from error
