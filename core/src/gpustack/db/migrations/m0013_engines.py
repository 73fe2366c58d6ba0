"""Packages that a model wants beside its engine, and the environments of engines on workers."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE models ADD COLUMN backend_packages JSON NOT NULL DEFAULT '[]'",
    """
    CREATE TABLE worker_engines (
        id BIGSERIAL PRIMARY KEY,
        worker_id BIGINT NOT NULL REFERENCES workers (id) ON DELETE CASCADE,
        backend VARCHAR(64) NOT NULL,
        version VARCHAR(64) NOT NULL,
        packages JSON NOT NULL,
        engine_key VARCHAR(64) NOT NULL,
        state VARCHAR(32) NOT NULL,
        state_message TEXT NOT NULL,
        request INTEGER NOT NULL,
        disk BIGINT NOT NULL,
        last_used_at TIMESTAMP WITH TIME ZONE,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        CONSTRAINT worker_engines_worker_id_engine_key_key UNIQUE (worker_id, engine_key)
    )
    """,
    "CREATE INDEX worker_engines_worker_id ON worker_engines (worker_id)",
)
