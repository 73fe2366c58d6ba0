"""Instances over several workers: their members, and whether a model may be divided so."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE model_instances ADD COLUMN members JSON NOT NULL DEFAULT '[]'",
    "ALTER TABLE model_instances ADD COLUMN follower_ids TEXT NOT NULL DEFAULT ' '",
    "ALTER TABLE model_instances ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE model_instances ADD COLUMN failed_attempts INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE models ADD COLUMN distributed_inference_across_workers BOOLEAN NOT NULL DEFAULT true",
)
