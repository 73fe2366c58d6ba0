"""People describe backends in rows; a model may bring an image or a command of its own."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE inference_backends (
        id BIGSERIAL PRIMARY KEY,
        backend_name VARCHAR(64) NOT NULL UNIQUE,
        version_configs JSON NOT NULL,
        default_version VARCHAR(64) NOT NULL,
        default_backend_param JSON NOT NULL,
        default_run_command TEXT NOT NULL,
        default_entrypoint TEXT NOT NULL,
        default_env JSON NOT NULL,
        health_check_path TEXT NOT NULL,
        parameter_format VARCHAR(16) NOT NULL,
        description TEXT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "ALTER TABLE models ADD COLUMN image_name VARCHAR(512) NOT NULL DEFAULT ''",
    "ALTER TABLE models ADD COLUMN run_command TEXT NOT NULL DEFAULT ''",
)
