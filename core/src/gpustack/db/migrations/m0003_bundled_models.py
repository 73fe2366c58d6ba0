"""Models whose files come with a plugin."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE models ADD COLUMN bundled_name VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE model_files ADD COLUMN bundled_name VARCHAR(64) NOT NULL DEFAULT ''",
)
