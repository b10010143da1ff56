"""What every test shares: where the real data lies, and no network but this machine's own loopback."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and expected scores beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "flickr8k" / "dataset_flickr8k.json").is_file():
        pytest.skip("needs ../shared (real photographs, expected scores), which isn't part of the project")
    return folder


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """The public-domain photographs of the project."""
    return sorted((ROOT / "examples" / "images").glob("*.jpg"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
