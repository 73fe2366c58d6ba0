"""The data path as one thing: everything that happens to a request between a client and an engine.

A :class:`Gateway` is a :class:`~gpustack.dataplane.http.Service`. It authenticates by the routing table, finds the model in
the body, waits for the request's turn, chooses an instance, passes the answer back and writes down what it took. What is
not for models goes to the server::

    gateway = Gateway(Parts(upstream=upstream, chooser=chooser, admission=admission, books=books))
    gateway.apply(table)
    server = HttpServer(gateway)
"""

from gpustack.dataplane.gateway.books import Books
from gpustack.dataplane.gateway.operations import OPERATIONS, Operation, is_inference
from gpustack.dataplane.gateway.service import Gateway, Parts

__all__ = ["OPERATIONS", "Books", "Gateway", "Operation", "Parts", "is_inference"]
