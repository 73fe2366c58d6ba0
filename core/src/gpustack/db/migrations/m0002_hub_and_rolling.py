"""Files from a hub, rolling changes, instances that drain, and what happened to instances."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE workers ADD COLUMN home VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE models ADD COLUMN huggingface_repo_id VARCHAR(255) NOT NULL DEFAULT ''",
    "ALTER TABLE models ADD COLUMN huggingface_filename TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE models ADD COLUMN huggingface_revision VARCHAR(255) NOT NULL DEFAULT ''",
    "ALTER TABLE models ADD COLUMN rollout JSON NOT NULL DEFAULT '{}'",
    "ALTER TABLE model_instances DROP CONSTRAINT model_instances_model_id_fkey",
    "ALTER TABLE model_instances ADD COLUMN resolved_revision VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE model_instances ADD COLUMN download_progress DOUBLE PRECISION NOT NULL DEFAULT 0",
    "ALTER TABLE model_instances ADD COLUMN draining_since TIMESTAMP WITH TIME ZONE",
    "ALTER TABLE model_instances ADD COLUMN drain_seconds INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE model_files ADD COLUMN huggingface_repo_id VARCHAR(255) NOT NULL DEFAULT ''",
    "ALTER TABLE model_files ADD COLUMN huggingface_filename TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE model_files ADD COLUMN huggingface_revision VARCHAR(255) NOT NULL DEFAULT ''",
    "ALTER TABLE model_files ADD COLUMN resolved_revision VARCHAR(64) NOT NULL DEFAULT ''",
    "ALTER TABLE model_files ADD COLUMN downloaded_size BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE model_files ADD COLUMN download_rate BIGINT NOT NULL DEFAULT 0",
    """
    CREATE TABLE instance_events (
        id BIGSERIAL PRIMARY KEY,
        model_id BIGINT NOT NULL,
        model_name VARCHAR(128) NOT NULL,
        instance_id BIGINT NOT NULL,
        instance_name VARCHAR(255) NOT NULL,
        worker_name VARCHAR(160) NOT NULL,
        what VARCHAR(32) NOT NULL,
        message TEXT NOT NULL,
        restart_count INTEGER NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX instance_events_model_id ON instance_events (model_id)",
    "CREATE INDEX instance_events_model_name ON instance_events (model_name)",
    "CREATE INDEX instance_events_instance_id ON instance_events (instance_id)",
    "CREATE INDEX instance_events_created_at ON instance_events (created_at)",
)
