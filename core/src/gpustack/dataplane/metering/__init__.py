"""What requests take: read out of bodies and answers, written down so that nothing is lost, counted for people.

- :mod:`~gpustack.dataplane.metering.requests` and :mod:`~gpustack.dataplane.metering.forms`: the model that a body
  names, another name in its place, usage asked for.
- :mod:`~gpustack.dataplane.metering.answers`: usage out of an answer as it passes, removed where it was only for us.
- :mod:`~gpustack.dataplane.metering.journal`: records for the server, at least once.
- :mod:`~gpustack.dataplane.metering.access_log`, :mod:`~gpustack.dataplane.metering.metrics`: for people.

Nothing here knows HTTP; nothing waits on the event loop.
"""
