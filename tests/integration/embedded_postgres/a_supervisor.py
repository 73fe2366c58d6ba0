"""Runs an embedded PostgreSQL until it is killed; prints the postmaster's process number when that is ready."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gpustack.db.embedded import EmbeddedPostgres


async def main(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, data_dir / "log")
    await postgres.prepare()
    await postgres.start()
    print(postgres.pid, flush=True)
    print(await postgres.wait(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
