"""Tools without a domain: errors, tasks, back-off, logging, network, paths and processes.

Nothing here knows what a model or a worker is, and nothing here imports a framework. Whatever differs
between operating systems (signals, process groups, paths, sockets) is settled in this room.
"""
