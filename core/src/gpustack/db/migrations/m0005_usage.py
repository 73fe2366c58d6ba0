"""What requests took, one row each."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE usage_records (
        id VARCHAR(64) PRIMARY KEY,
        ended_at TIMESTAMP WITH TIME ZONE NOT NULL,
        route VARCHAR(255) NOT NULL,
        model VARCHAR(255) NOT NULL,
        instance_id BIGINT,
        user_id BIGINT,
        key_id BIGINT,
        operation VARCHAR(64) NOT NULL,
        status SMALLINT NOT NULL,
        prompt_tokens BIGINT NOT NULL,
        cached_tokens BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        time_to_first_token DOUBLE PRECISION,
        between_tokens DOUBLE PRECISION,
        duration DOUBLE PRECISION NOT NULL,
        queued DOUBLE PRECISION NOT NULL,
        estimated BOOLEAN NOT NULL
    )
    """,
    "CREATE INDEX usage_records_ended_at ON usage_records (ended_at)",
)
