"""A route says which errors of an engine lead to its fallback; those of before name none."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE model_routes ADD COLUMN fallback_status_codes JSON NOT NULL DEFAULT '[]'",
)
