"""What the checks of encoders and of decoders share."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn

from ..protocols import Features

__all__ = [
    "check_config",
    "check_gradients",
    "check_protocol",
    "expect",
    "generator",
    "left_as_it_was",
    "like",
    "pick",
    "same",
]

_LAWS = {
    0: "the methods and attributes of showtell.protocols, with the shapes they promise",
    1: "config() survives JSON unchanged and rebuilds the same tensor names and shapes",
    2: "dim 0 of every tensor is the row; state is an argument and a result, nothing is kept on self",
    3: "teacher forcing equals T steps",
    4: "rows don't see each other",
    5: "step writes to no argument",
    6: "masked regions change nothing, building fetches nothing, eval is deterministic, what is frozen stays in eval",
    7: "every parameter that requires a gradient takes part in every forward",
}
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest value; others: 0.05


def check_protocol(part: Any, protocol: Any) -> None:
    """The part has every method and attribute that its protocol names."""
    expect(isinstance(part, nn.Module), 0, part, "it is no torch.nn.Module")
    names = [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]
    missing = [name for name in names if not hasattr(part, name)]
    expect(not missing, 0, part, f"it has no {', '.join(missing)}")


def check_config(part: Any) -> None:
    """Law 1, and of law 6 that building opens no socket."""
    config = part.config()
    try:
        back = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        _fail(1, part, f"config() isn't JSON: {error}")
    expect(back == config, 1, part, f"config() is {config!r:.300} and comes back from JSON as {back!r:.300}")
    with _no_network() as attempts:
        try:
            built = type(part)(**back)
        except TypeError as error:
            _fail(1, part, f"{type(part).__name__}(**config()) fails: {error}")
    expect(not attempts, 6, part, f"building from config() reached for the network: {', '.join(attempts)}")
    expect(built.config() == config, 1, part, f"rebuilt, config() is {built.config()!r:.300}, not {config!r:.300}")
    ours, theirs = ({name: tuple(t.shape) for name, t in p.state_dict().items()} for p in (part, built))
    differing = [f"{n}: {ours.get(n)} became {theirs.get(n)}" for n in ours | theirs if ours.get(n) != theirs.get(n)]
    expect(not differing, 1, part, f"rebuilt from config(), tensors differ: {'; '.join(differing[:5])}")


def check_gradients(part: Any, outputs: Sequence[Tensor | None]) -> None:
    """Law 7."""
    trainable = {name: p for name, p in part.named_parameters() if p.requires_grad}
    sums = [t.float().sum() for t in outputs if t is not None and t.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(trainable)
    if trainable and sums:
        gradients = torch.autograd.grad(sum(sums[1:], sums[0]), list(trainable.values()), allow_unused=True)
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    expect(not unused, 7, part, f"no gradient reaches {', '.join(unused[:5])}")


def pick(features: Features, rows: Tensor | slice) -> Features:
    """Some images' features."""
    return Features(*(None if t is None else t[rows] for t in features))  # type: ignore[arg-type]


def generator() -> torch.Generator:
    """A fresh, seeded source of random numbers on the CPU."""
    return torch.Generator().manual_seed(0)


def like(part: Any) -> Tensor:
    """A tensor of the part's device and floating-point type."""
    return next((t.detach() for t in part.parameters() if t.is_floating_point()), torch.zeros(()))


def same(law: int, part: Any, what: str, found: Any, expected: Any) -> None:
    """Compare tensors, or all the tensors of Features, but for rounding."""
    if isinstance(expected, Features):
        for name, ours, theirs in zip(Features._fields, found, expected, strict=True):
            if (ours is None) != (theirs is None):
                _fail(law, part, f"{what}: {name} is there only once")
            if theirs is not None:
                same(law, part, f"{what}: {name}", ours, theirs)
        return
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shapes = [f"{t.dtype} {tuple(t.shape)}" for t in (found, expected)]
        _fail(law, part, f"{what}: {shapes[0]}, not {shapes[1]}")
    found, limit = found.detach().double(), _TOLERANCE.get(expected.dtype, 0.05)
    expected = expected.detach().double()
    off = float((found - expected).abs().max()) if expected.numel() else 0.0
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    expect(off <= limit * largest, law, part, f"{what}: off by up to {off:.3g} where values reach {largest:.3g}")


def expect(fits: bool, law: int, part: Any, what: str) -> None:
    """Raise an AssertionError naming the law unless it fits."""
    if not fits:
        _fail(law, part, what)


def _fail(law: int, part: Any, what: str) -> NoReturn:
    name = f"law {law}" if law else "the protocol"
    raise AssertionError(f"{type(part).__name__} breaks {name} ({_LAWS[law]}): {what}")


@contextmanager
def left_as_it_was(part: Any) -> Iterator[nn.Module]:
    """Put back modes, buffers and the random state."""
    module: nn.Module = part
    modes = {m: m.training for m in module.modules()}
    buffers = [(b, b.clone()) for b in module.buffers()]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            yield module
        finally:
            for m, training in modes.items():
                m.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def _no_network() -> Iterator[list[str]]:
    """Refuse connections inside; the list names what was tried, even where the refusal was swallowed."""
    attempts: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        attempts.append(", ".join(f"{a!r:.60}" for a in arguments if not isinstance(a, socket.socket)))
        raise OSError("showtell.testing allows no connections while a part is built")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield attempts
