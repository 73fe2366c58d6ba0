"""Certificates made on the spot, and both event loops."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping

import pytest
import uvloop

from support.certificates import Pair, a_pair


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(name="a_pair")
def _a_pair() -> Callable[..., Pair]:
    return a_pair


@pytest.fixture(name="trusting")
def _trusting() -> Callable[..., ssl.SSLContext]:
    """Return what makes a client's context: one that trusts the given pairs and no others."""

    def trusting(*pairs: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata="".join(pair.pem.decode() for pair in pairs))
        return context

    return trusting
