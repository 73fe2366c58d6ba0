"""The lives of instances and engines as pure functions: an event comes in, a new state and instructions go out.

Nothing here does I/O, knows the time by itself, or imports a third party. The server walks an instance with
:mod:`gpustack.lifecycle.instance`; the worker walks the engine behind it with :mod:`gpustack.lifecycle.engine`.
"""
