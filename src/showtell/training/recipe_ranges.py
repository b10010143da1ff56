"""The range of each number in a recipe."""

from __future__ import annotations

__all__ = ["NUMBERS", "WHOLE_NUMBERS"]

WHOLE_NUMBERS: tuple[tuple[str, int, int], ...] = (
    ("views", 0, 1000),
    ("photos", 1, 4096),
    ("captions", 1, 100),
    ("max_length", 1, 1000),
    ("accumulate", 1, 4096),
    ("encoder_start_epoch", 0, 100_000),
    ("epochs", 1, 100_000),
    ("min_steps", 0, 10**8),
    ("warmup", 0, 10**8),
    ("self_critical_epochs", 0, 100_000),
    ("self_critical_samples", 1, 100),
    ("seed", 0, 2**63 - 1),
    ("evaluate_every_epochs", 1, 100_000),
    ("val_photos", 1, 10**8),
    ("patience", 0, 100_000),
    ("save_every_steps", 1, 10**8),
    ("log_every_steps", 0, 10**8),
)

NUMBERS: tuple[tuple[str, float, float], ...] = (
    ("encoder_learning_rate", 0.0, 10.0),
    ("layer_decay", 0.0, 1.0),
    ("ema_decay", 0.0, 0.999999),
    ("learning_rate", 0.0, 10.0),
    ("carried_rate", 0.0, 1.0),
    ("weight_decay", 0.0, 1.0),
    ("label_smoothing", 0.0, 0.9),
    ("clip_norm", 0.0, 1e6),
    ("doubly_stochastic", 0.0, 1000.0),
    ("sampling", 0.0, 1.0),
    ("self_critical_learning_rate", 0.0, 10.0),
    ("self_critical_temperature", 0.01, 100.0),
    ("self_critical_bleu", 0.0, 100.0),
    ("self_critical_length", 0.0, 100.0),
    ("self_critical_words", 0.0, 1000.0),
    ("distillation", 0.0, 1.0),
)
