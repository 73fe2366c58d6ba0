"""The first tables."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE users (
        id BIGSERIAL PRIMARY KEY,
        username VARCHAR(128) NOT NULL UNIQUE,
        full_name VARCHAR(256) NOT NULL,
        password_hash TEXT NOT NULL,
        is_admin BOOLEAN NOT NULL,
        is_active BOOLEAN NOT NULL,
        require_password_change BOOLEAN NOT NULL,
        source VARCHAR(32) NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    """
    CREATE TABLE sessions (
        id BIGSERIAL PRIMARY KEY,
        user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        digest VARCHAR(128) NOT NULL UNIQUE,
        expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX sessions_user_id ON sessions (user_id)",
    "CREATE INDEX sessions_expires_at ON sessions (expires_at)",
    """
    CREATE TABLE api_keys (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(128) NOT NULL,
        description TEXT NOT NULL,
        user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        access_key VARCHAR(128) NOT NULL UNIQUE,
        digest VARCHAR(128) NOT NULL UNIQUE,
        allowed_model_names JSON NOT NULL,
        expires_at TIMESTAMP WITH TIME ZONE,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        UNIQUE (user_id, name)
    )
    """,
    "CREATE INDEX api_keys_user_id ON api_keys (user_id)",
    """
    CREATE TABLE clusters (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(128) NOT NULL UNIQUE,
        description TEXT NOT NULL,
        provider VARCHAR(64) NOT NULL,
        is_default BOOLEAN NOT NULL,
        state VARCHAR(32) NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    """
    CREATE TABLE workers (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(160) NOT NULL UNIQUE,
        hostname VARCHAR(255) NOT NULL,
        ip VARCHAR(64) NOT NULL,
        port INTEGER NOT NULL,
        cluster_id BIGINT NOT NULL REFERENCES clusters (id) ON DELETE RESTRICT,
        worker_uuid VARCHAR(64) NOT NULL UNIQUE,
        token_digest VARCHAR(128) NOT NULL UNIQUE,
        door_token VARCHAR(128) NOT NULL,
        version VARCHAR(64) NOT NULL,
        state VARCHAR(32) NOT NULL,
        state_message TEXT NOT NULL,
        labels JSON NOT NULL,
        system_reserved JSON NOT NULL,
        heartbeat_time TIMESTAMP WITH TIME ZONE,
        status JSON NOT NULL,
        gpu_count INTEGER NOT NULL,
        catalogue JSON NOT NULL,
        installed_versions JSON NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX workers_cluster_id ON workers (cluster_id)",
    """
    CREATE TABLE models (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(128) NOT NULL UNIQUE,
        description TEXT NOT NULL,
        meta JSON NOT NULL,
        source VARCHAR(32) NOT NULL,
        local_path TEXT NOT NULL,
        replicas INTEGER NOT NULL,
        ready_replicas INTEGER NOT NULL,
        categories JSON NOT NULL,
        placement_strategy VARCHAR(32) NOT NULL,
        worker_selector JSON NOT NULL,
        backend VARCHAR(64) NOT NULL,
        backend_version VARCHAR(64) NOT NULL,
        backend_parameters JSON NOT NULL,
        env JSON NOT NULL,
        restart_on_error BOOLEAN NOT NULL,
        spec_digest VARCHAR(64) NOT NULL,
        cluster_id BIGINT NOT NULL REFERENCES clusters (id) ON DELETE RESTRICT,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX models_cluster_id ON models (cluster_id)",
    """
    CREATE TABLE model_instances (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(255) NOT NULL UNIQUE,
        model_id BIGINT NOT NULL REFERENCES models (id) ON DELETE CASCADE,
        model_name VARCHAR(128) NOT NULL,
        cluster_id BIGINT NOT NULL REFERENCES clusters (id) ON DELETE RESTRICT,
        state VARCHAR(32) NOT NULL,
        state_message TEXT NOT NULL,
        state_since TIMESTAMP WITH TIME ZONE NOT NULL,
        worker_id BIGINT REFERENCES workers (id) ON DELETE CASCADE,
        worker_name VARCHAR(160) NOT NULL,
        worker_ip VARCHAR(64) NOT NULL,
        pid BIGINT,
        port INTEGER,
        ports JSON NOT NULL,
        resolved_path TEXT NOT NULL,
        backend VARCHAR(64) NOT NULL,
        backend_version VARCHAR(64) NOT NULL,
        computed_resource_claim JSON NOT NULL,
        gpu_indexes JSON NOT NULL,
        spec_digest VARCHAR(64) NOT NULL,
        restart_count INTEGER NOT NULL,
        last_restart_time TIMESTAMP WITH TIME ZONE,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX model_instances_model_id ON model_instances (model_id)",
    "CREATE INDEX model_instances_cluster_id ON model_instances (cluster_id)",
    "CREATE INDEX model_instances_worker_id ON model_instances (worker_id)",
    """
    CREATE TABLE model_files (
        id BIGSERIAL PRIMARY KEY,
        worker_id BIGINT NOT NULL REFERENCES workers (id) ON DELETE CASCADE,
        source VARCHAR(32) NOT NULL,
        local_path TEXT NOT NULL,
        source_key VARCHAR(64) NOT NULL,
        state VARCHAR(32) NOT NULL,
        state_message TEXT NOT NULL,
        request INTEGER NOT NULL,
        size BIGINT NOT NULL,
        resolved_paths JSON NOT NULL,
        facts JSON,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        UNIQUE (worker_id, source_key)
    )
    """,
    "CREATE INDEX model_files_worker_id ON model_files (worker_id)",
    "CREATE INDEX model_files_source_key ON model_files (source_key)",
    """
    CREATE TABLE events (
        number BIGINT PRIMARY KEY,
        topic VARCHAR(32) NOT NULL,
        type SMALLINT NOT NULL,
        object_id BIGINT NOT NULL,
        data JSON NOT NULL,
        changed_fields JSON NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    """
    CREATE TABLE event_counter (
        id SMALLINT PRIMARY KEY,
        value BIGINT NOT NULL
    )
    """,
    "INSERT INTO event_counter (id, value) VALUES (1, 0)",
)
