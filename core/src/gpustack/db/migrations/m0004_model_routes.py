"""The names that requests ask for become things of their own; every model gets a route by its name."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE model_routes (
        id BIGSERIAL PRIMARY KEY,
        name VARCHAR(128) NOT NULL,
        description TEXT NOT NULL,
        aliases JSON NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    """
    CREATE TABLE model_route_names (
        name VARCHAR(128) PRIMARY KEY,
        route_id BIGINT NOT NULL REFERENCES model_routes (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX model_route_names_route_id ON model_route_names (route_id)",
    """
    CREATE TABLE model_route_targets (
        id BIGSERIAL PRIMARY KEY,
        route_id BIGINT NOT NULL REFERENCES model_routes (id) ON DELETE CASCADE,
        model_id BIGINT,
        model_name VARCHAR(128) NOT NULL,
        weight INTEGER NOT NULL,
        is_fallback BOOLEAN NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL,
        updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
        UNIQUE (route_id, model_name)
    )
    """,
    "CREATE INDEX model_route_targets_model_id ON model_route_targets (model_id)",
    "CREATE INDEX model_route_targets_model_name ON model_route_targets (model_name)",
    """
    INSERT INTO model_routes (name, description, aliases, created_at, updated_at)
    SELECT name, '', CAST('[]' AS JSON), created_at, updated_at FROM models ORDER BY id
    """,
    "INSERT INTO model_route_names (name, route_id) SELECT name, id FROM model_routes",
    """
    INSERT INTO model_route_targets
        (route_id, model_id, model_name, weight, is_fallback, created_at, updated_at)
    SELECT r.id, m.id, m.name, 100, FALSE, m.created_at, m.updated_at
    FROM models m JOIN model_routes r ON r.name = m.name ORDER BY m.id
    """,
)
