"""GPUStack inside another program: its server as an ASGI application, and a worker, on that program's event loop.

    import asyncio
    from gpustack.embedding import EmbeddedServer, EmbeddedWorker

    async def main():
        async with EmbeddedServer(data_dir="/tmp/embedded", settings={"disable_update_check": True}) as server:
            async with EmbeddedWorker(server) as worker, server.client() as client:
                await worker.ready()
                print([each.name for each in await client.workers.list_all()])

    asyncio.run(main())

:attr:`EmbeddedServer.app` is what the other program mounts, at the root or below a path. Nothing here reads the
process's environment, handles signals, configures logging, or keeps anything outside its objects: several can be there
at once, each with a data directory and a database of its own, and each can be started again after its end.
"""

from gpustack.embedding.events import Events, Happening
from gpustack.embedding.server import EmbeddedServer
from gpustack.embedding.worker import EmbeddedWorker

__all__ = ["EmbeddedServer", "EmbeddedWorker", "Events", "Happening"]
