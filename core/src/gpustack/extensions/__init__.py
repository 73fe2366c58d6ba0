"""Finds the installed plugins, guards each, and keeps what they bring in a :class:`Catalogue`.

    catalogue = load_catalogue()
    llama = catalogue.make(catalogue.backends["llama.cpp"], host)
    verdict = await Guard.call("llama.cpp", llama.accepts, facts, ())

A plugin that is broken is data, never an exception: see :attr:`Catalogue.failures`.
"""

from gpustack.extensions.catalogue import Catalogue, Failure, Registered
from gpustack.extensions.guard import Guard
from gpustack.extensions.loader import load_catalogue

__all__ = ["Catalogue", "Failure", "Guard", "Registered", "load_catalogue"]
