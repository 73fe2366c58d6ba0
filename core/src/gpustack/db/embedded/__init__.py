"""The PostgreSQL that comes with GPUStack: its programs, its cluster of files, and its running.

    postgres = EmbeddedPostgres(Path("/var/lib/gpustack"), Path("/var/lib/gpustack/log"))
    await postgres.prepare()        # finds the programs; makes the cluster the first time
    await postgres.start()          # returns when it accepts connections
    postgres.url                    # postgresql://gpustack:…@127.0.0.1:15432/gpustack
    reason = await postgres.wait()  # one line, once it has ended
    await postgres.stop()

Everything lies in ``<data-dir>/postgresql``. It is meant for the supervisor, so it imports no database library.
PostgreSQL ends with the *thread* that started it: start it from the main thread, which lives as long as its process.
"""

from __future__ import annotations

from gpustack.db.embedded.binaries import Binaries
from gpustack.db.embedded.server import EmbeddedPostgres

__all__ = ["Binaries", "EmbeddedPostgres"]
