"""How models are served: time-outs, queues, priorities, and between how many instances they are scaled."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE models ADD COLUMN min_replicas INTEGER",
    "ALTER TABLE models ADD COLUMN max_replicas INTEGER",
    "ALTER TABLE models ADD COLUMN autoscaling JSON NOT NULL DEFAULT '{}'",
    "ALTER TABLE models ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE models ADD COLUMN timeouts JSON NOT NULL DEFAULT '{}'",
    "ALTER TABLE models ADD COLUMN queue JSON NOT NULL DEFAULT '{}'",
)
