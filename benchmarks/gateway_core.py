"""The gateway with an AI gateway's bare work: ``gateway_core.py PORT FOLDER``, by the table that is in ``FOLDER``.

The same library and the same code as in a GPUStack, put together without what can be left out; :data:`ON` and :data:`OFF`
say what that is. What everything costs is measured of the whole process (:func:`gateway_subjects.ours`).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from pathlib import Path

import uvloop

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.gateway import Books, Gateway, Parts
from gpustack.dataplane.http import HttpServer, Upstream
from gpustack.dataplane.metering.access_log import AccessLog
from gpustack.dataplane.metering.metrics import Metrics
from gpustack.dataplane.metering.numbers import Slot
from gpustack.dataplane.table.copy import TableCopy, TableFile

#: What it does with each request, for whoever reads the figures.
ON = (
    "keys, routing by the body's model, turns and limits, least outstanding with marks of prefixes, usage read from "
    "answers, a line of the access log, counters"
)
OFF = (
    "counts shared with other processes, the journal of usage and its delivery, open streams kept for a kill, the link to "
    "the server"
)


async def _main(port: int, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    with AccessLog(folder / "access.log") as access, Slot(folder / "metrics", 0) as slot:
        gateway = Gateway(
            Parts(
                upstream=upstream,
                chooser=Chooser(time.monotonic),
                admission=Admission(loop.time, loop),
                books=Books(access_log=access, metrics=Metrics(slot)),
            )
        )
        if not TableFile(folder / "table", TableCopy(gateway.apply, gateway.close_keys)).load():
            raise SystemExit(f"there is no table in {folder}")
        server = HttpServer(gateway)
        upstream.start()
        server.start()
        # As the gateway's own process does it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        await loop.create_server(server.protocol, "127.0.0.1", port, backlog=4096)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1]), Path(sys.argv[2])))
