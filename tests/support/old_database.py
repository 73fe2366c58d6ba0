"""A database as the first version left it."""

from __future__ import annotations

from gpustack.db import migrations
from gpustack.db.connection import inside
from gpustack.db.source import source_of

OLD_ROWS = """
INSERT INTO users VALUES (nextval('users_id_seq'), 'admin', '', 'hash', true, true, false, 'Local', now(), now());
INSERT INTO clusters VALUES (nextval('clusters_id_seq'), 'default', '', 'Docker', true, 'ready', now(), now());
INSERT INTO workers VALUES (nextval('workers_id_seq'), 'box', 'box', '127.0.0.1', 1, 1, 'u-u-i-d-0', 'digest', 'door',
  '0.1', 'ready', '', '{}', '{}', now(), '{}', 0, '{}', '{}', now(), now());
INSERT INTO models VALUES (nextval('models_id_seq'), 'old', '', '{}', 'local_path', '/m.gguf', 1, 0, '[]', 'spread',
  '{}', '', '', '[]', '{}', true, 'spec', 1, now(), now());
INSERT INTO model_instances VALUES (nextval('model_instances_id_seq'), 'old-1', 1, 'old', 1, 'running', '', now(), 1,
  'box', '127.0.0.1', 42, 4000, '[4000]', '/m.gguf', 'b', '1', '{}', '[]', 'spec', 0, NULL, now(), now());
INSERT INTO model_files VALUES (nextval('model_files_id_seq'), 1, 'local_path', '/m.gguf', 'key', 'ready', '', 1, 7,
  '[]', NULL, now(), now());
UPDATE event_counter SET value = 7;
"""


async def at_the_first_step(url: str) -> None:
    """Make a database as the first version left it, with a row in each table."""
    connection = await source_of(url).open()
    async with inside(connection):
        await migrations.apply(connection, ["0001_initial"], "it")
        for statement in OLD_ROWS.split(";\n"):
            if statement.strip():
                await connection.fetch(statement)
    connection.terminate()
