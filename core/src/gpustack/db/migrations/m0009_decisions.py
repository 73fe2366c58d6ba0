"""What the scheduler decided, and what is needed to decide it again."""

from __future__ import annotations

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE decision_pages (
        id BIGSERIAL PRIMARY KEY,
        run VARCHAR(32) NOT NULL,
        number BIGINT NOT NULL,
        whole BOOLEAN NOT NULL,
        decisions INTEGER NOT NULL,
        body TEXT NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX decision_pages_run_number ON decision_pages (run, number)",
    """
    CREATE TABLE decisions (
        id BIGSERIAL PRIMARY KEY,
        page_id BIGINT NOT NULL REFERENCES decision_pages (id) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        model_id BIGINT NOT NULL,
        instance_id BIGINT NOT NULL,
        worker_id BIGINT,
        decided_at TIMESTAMP WITH TIME ZONE NOT NULL
    )
    """,
    "CREATE INDEX decisions_page_id ON decisions (page_id)",
    "CREATE INDEX decisions_model_id ON decisions (model_id)",
    "CREATE INDEX decisions_instance_id ON decisions (instance_id)",
)
