"""The routing table on its way from the server to gateways on the same machine, and how each keeps its copy.

- :mod:`~gpustack.dataplane.table.wire`: the messages, and how they are told apart in a stream of bytes.
- :mod:`~gpustack.dataplane.table.copy`: a gateway's own copy, in memory and on disk.
- :mod:`~gpustack.dataplane.table.link`: a gateway's connection to the server, which may be gone for days.
"""
