"""A held port is nobody else's, and nobody's once it is let go."""

from __future__ import annotations

import socket

from gpustack.kit.net import hold
from support.running import free_ports


def test_a_held_port_cannot_be_held_again_nor_used() -> None:
    (port,) = free_ports(1)
    held = hold(port)
    assert held is not None
    try:
        assert hold(port) is None
    finally:
        held.close()
    again = hold(port)
    assert again is not None
    again.close()


def test_a_port_that_somebody_listens_on_at_another_address_is_not_free() -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        assert hold(sock.getsockname()[1]) is None
