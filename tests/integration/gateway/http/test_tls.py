"""The same over TLS, where a connection cannot be closed for one direction."""

from __future__ import annotations

import json
import ssl

import pytest

from support.certificates import a_pair

from .conftest import get, post


@pytest.fixture
def contexts(tmp_path):
    pair = a_pair()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*pair.write(tmp_path))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=pair.pem.decode())
    return server, client


async def test_requests_over_tls(lab, contexts):
    gateway = await lab.gateway(tls=contexts[0])
    client = await lab.client(gateway, tls=contexts[1])
    for _ in range(2):
        await client.send(post(b"/x", b"x" * 200_000))
        said = json.loads((await client.answer())[1])
        assert (said["size"], said["tls"]) == (200_000, True)


async def test_an_error_over_tls_is_answered_and_ends_the_connection(lab, contexts):
    gateway = await lab.gateway(tls=contexts[0], linger_seconds=0.1)
    client = await lab.client(gateway, tls=contexts[1])
    await client.send(b"nonsense\r\n\r\n" + get(b"/hidden"))
    assert (await client.answer())[0] == 400
    await client.gone()
    assert gateway.handled == []


async def test_who_speaks_tls_to_a_plain_port_is_told_so(lab, contexts):
    gateway = await lab.gateway(linger_seconds=0.1)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await lab.client(gateway, tls=contexts[1])
    await lab.undisturbed(gateway)
