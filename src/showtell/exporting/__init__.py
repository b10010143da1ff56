"""Captioners as programs that need no showtell: ONNX or torch.export; and ONNX back as a captioner."""

from .onnx import load_onnx
from .write import export

__all__ = ["export", "load_onnx"]
