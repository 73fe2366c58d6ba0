"""What instances were estimated to take, and the most that they took."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE model_instances ADD COLUMN memory JSON NOT NULL DEFAULT ('{}')",
    """
    CREATE TABLE measured_memory (
        architecture VARCHAR(200) NOT NULL,
        backend VARCHAR(64) NOT NULL,
        version VARCHAR(64) NOT NULL,
        arguments VARCHAR(64) NOT NULL,
        ram BIGINT NOT NULL,
        vram BIGINT NOT NULL,
        starts INTEGER NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        PRIMARY KEY (architecture, backend, version, arguments)
    )
    """,
)
