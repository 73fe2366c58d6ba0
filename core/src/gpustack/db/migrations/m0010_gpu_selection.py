"""GPUs that are chosen by hand for a model."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = ("ALTER TABLE models ADD COLUMN gpu_selector JSON",)
