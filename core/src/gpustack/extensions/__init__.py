"""Finds the installed plugins, guards each, and keeps what they bring in a :class:`Catalogue`.

    import asyncio, logging, pathlib
    from gpustack.extensions import Guard, load_catalogue
    from gpustack.plugin import Host, ModelFacts

    async def example():
        catalogue = load_catalogue()
        llama = catalogue.backends["llama-cpp"]
        here = pathlib.Path.cwd()
        host = Host(log=logging.getLogger("example"), data_dir=here, bin_dir=here)
        facts = ModelFacts(format="gguf", path="/models/tiny.gguf", weight_bytes=1, categories=("llm",))
        async with catalogue.make(llama, host) as backend:
            return await Guard.call(llama.plugin, backend.accepts, facts, ())

    print(asyncio.run(example()))

A plugin that is broken is data, never an exception: see :attr:`Catalogue.failures`.
"""

from gpustack.extensions.bundled import BundledModels, Described
from gpustack.extensions.catalogue import Catalogue, Failure, Registered
from gpustack.extensions.guard import Guard
from gpustack.extensions.loader import load_catalogue
from gpustack.extensions.opening import Inside, inside, make, opened

__all__ = [
    "BundledModels",
    "Catalogue",
    "Described",
    "Failure",
    "Guard",
    "Inside",
    "Registered",
    "inside",
    "load_catalogue",
    "make",
    "opened",
]
