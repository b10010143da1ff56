"""Counting and timing for generation.py: operations, bytes, the machine's own speed, medians, memory."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]
_clocks = [time.perf_counter]


def use_cpu_time() -> None:
    """Time what the processor spends here instead of what passes: with one thread, where others use the machine too."""
    torch.set_num_threads(1)
    _clocks[0] = time.process_time


def clock() -> float:
    return _clocks[0]()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def in_turn(calls: dict[str, Call], rounds: int, device: torch.device, *, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls take turns, so that a busy moment of the machine hits them all."""
    if warm:
        for call in calls.values():
            call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            took[name].append(seconds(call, device))
    return took


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(took: dict[str, list[float]], over: str, under: str) -> float:
    """The median over the rounds of the two times' ratio."""
    return round(median([a / b for a, b in zip(took[over], took[under], strict=True)]), 3)


def operations(call: Call) -> int:
    """Floating-point operations of matrix products and convolutions, a multiply-add being two."""
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")  # about TF32 on other machines
        with torch.backends.mkldnn.flags(enabled=False):  # its fused LSTM isn't counted
            call()
    return counter.get_total_flops()


def weight_bytes(module: nn.Module, *, without: tuple[str, ...] = ()) -> int:
    """Bytes of the weights that one call reads, each once."""
    return sum(p.numel() * p.element_size() for name, p in module.named_parameters() if not name.startswith(without))


def machine_speed(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the machine gives here and now: GFLOP/s of a large matrix product, GB/s of reading a large tensor."""
    n, size = (1536, 1 << 26) if device.type == "cpu" else (8192, 1 << 30)
    a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
    weights = torch.rand(size // 4096, 1024, device=device)
    vector = torch.rand(1024, device=device)
    took = in_turn({"product": lambda: a @ b, "read": lambda: weights @ vector}, 5, device)
    return {
        "gflops": round(2 * n**3 / min(took["product"]) / 1e9, 1),
        "gb_per_s": round(weights.numel() * 4 / min(took["read"]) / 1e9, 1),
    }


def against_floor(ops: int, bytes_read: int, measured: float, speed: dict[str, float]) -> dict[str, float]:
    """The least time that the operations and the bytes need at the machine's own speed, and the gap to it."""
    floor = max(ops / (speed["gflops"] * 1e9), bytes_read / (speed["gb_per_s"] * 1e9))
    return {
        "gflop": round(ops / 1e9, 3),
        "mb": round(bytes_read / 1e6, 1),
        "floor_ms": round(1000 * floor, 2),
        "measured_ms": round(1000 * measured, 2),
        "gap": round(measured / floor, 2),
    }


def peak_memory(call: Call, device: torch.device) -> float | None:
    """MB that a call needed beyond what was there before it; None where this can't be known."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left free goes back
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from here
        before = _status("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None
    call()
    return round((_status("VmHWM") - before) / 1000, 1)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def size_of(*modules: Any) -> dict[str, float]:
    parameters = [p for module in modules for p in module.parameters()]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "mb": round(sum(p.numel() * p.element_size() for p in parameters) / 1e6, 1),
    }


def machine(device: torch.device) -> dict[str, Any]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    here = Path(__file__).parent
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "commit": asked.stdout.strip(),
    }


def publish(result: dict[str, Any], file: Path | None, indent: int = 2) -> None:
    """Print a result as JSON, and write it to a file if one is named."""
    text = json.dumps(result, indent=indent)
    print(text)
    if file:
        file.write_text(text + "\n", encoding="utf-8")
