"""What of a request's body is another one for an engine."""

from __future__ import annotations

from gpustack.dataplane.gateway.operations import Operation
from gpustack.dataplane.metering import forms, requests
from gpustack.dataplane.metering.requests import Asked


def body_for(body: bytes, asked: Asked, operation: Operation, served_name: str) -> tuple[bytes, bool]:
    """Return ``body`` with the engine's own name of the model, and whether usage had to be asked for.

    An empty ``served_name`` leaves the model as it is. A model that the body does not name is not looked for.
    """
    if asked.span == (0, 0) or not (served_name or asked.stream):
        return body, False
    if not operation.form:
        return requests.rewrite(body, asked, model=served_name, usage=operation.asks_usage)
    if served_name and served_name != asked.model:
        body = forms.rename_in_form(body, asked.span, served_name)
    return body, False
