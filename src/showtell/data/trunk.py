"""Which part of an encoder a feature cache stands in for, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ArgumentError
from ..protocols import Encoder, Features, SplitEncoder, as_features, move

__all__ = ["Trunk"]


class Trunk:
    """The frozen part of an encoder: `trunk` of a SplitEncoder, any other encoder as a whole.

    Its tensors are all those of the encoder but the head's. What belongs to the head is found by running both on one
    black photo and seeing which tensors they touch; a tensor that neither is seen to touch counts as the trunk's.
    The encoder is in evaluation mode while it runs, and as it was afterwards.

    Raises ArgumentError, with names, when a parameter of the trunk is trainable.
    """

    def __init__(self, encoder: Encoder, device: str | torch.device | None = None) -> None:
        """Run the encoder on one black photo; `device` is where it runs, by default where it is."""
        self.split = isinstance(encoder, SplitEncoder)
        self.encoder = encoder
        self._module = cast(nn.Module, encoder)
        self._run: Callable[[Tensor], Features] = encoder.trunk if isinstance(encoder, SplitEncoder) else encoder
        own = next((t.device for _, t in _tensors(self._module)), torch.device("cpu"))
        self.device = own if device is None else torch.device(device)
        self._own_device = own
        spec = encoder.image_spec
        with self.running():
            touched, head_touched = _Touched(), _Touched()
            with touched:
                self.sample = self(torch.zeros(1, 3, spec.height, spec.width))
            if isinstance(encoder, SplitEncoder):
                with head_touched:
                    encoder.head(move(self.sample, self.device))
            head_only = head_touched.ids - touched.ids
            # What a batch norm of the head merely counts isn't touched: it goes with the module's other tensors.
            owners: dict[str, set[int]] = {}
            for name, tensor in _tensors(self._module):
                owners.setdefault(name.rpartition(".")[0], set()).add(id(tensor))
            head_modules = {
                owner for owner, ids in owners.items() if owner and ids & head_only and not ids & touched.ids
            }
            self._tensors = {
                name: tensor
                for name, tensor in _tensors(self._module)
                if id(tensor) not in head_only and name.rpartition(".")[0] not in head_modules
            }
        trainable = [name for name, tensor in self._tensors.items() if tensor.requires_grad]
        if trainable:
            raise ArgumentError(
                f"features can't be cached while the encoder's trunk is trained: {len(trainable)} of its parameters "
                f"are trainable ({', '.join(trainable[:3])}{', ...' * (len(trainable) > 3)}); freeze them with "
                "requires_grad_(False) (trainable=False), or train without the cache"
            )

    def __call__(self, images: Tensor) -> Features:
        """(N, 3, H, W) -> Features on the CPU; to be called inside `running()`."""
        who = f"{type(self.encoder).__name__}{'.trunk' * self.split} must return"
        features: Features = move(as_features(self._run(images.to(self.device)), who), "cpu")
        return features

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode, no gradients and the device asked for; all put back afterwards."""
        training = [module for module in self._module.modules() if module.training]
        self._module.eval()
        if self.device != self._own_device:
            self._module.to(self.device)
        try:
            with torch.inference_mode():
                yield
        finally:
            if self.device != self._own_device:
                self._module.to(self._own_device)
            for module in training:
                module.training = True

    def key(self) -> str:
        """SHA-256 over class, config (but its `head`), image spec and every tensor as float32 (integers as int64)."""
        config = self.encoder.config()
        if self.split:
            config = {name: value for name, value in config.items() if name != "head"}
        kind = type(self.encoder)
        facts = [f"{kind.__module__}:{kind.__qualname__}", config, self.encoder.image_spec.to_config(), self.split]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in self._tensors.items():
            wide = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else torch.int64)
            digest.update(f"{name}{tuple(wide.shape)}".encode())
            digest.update(wide.numpy().tobytes())
        return digest.hexdigest()


class _Touched(TorchFunctionMode):
    """Notes the identity of every tensor that is handed to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._note((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.ids.add(id(value))
        elif isinstance(value, list | tuple):
            for each in value:
                self._note(each)
        elif isinstance(value, dict):
            self._note(list(value.values()))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that aren't saved included: mean and standard deviation count."""
    yield from module.named_parameters()
    yield from module.named_buffers()
