"""Ports are checked, held until they are used, and given back."""

import socket

import pytest

from gpustack.kit.errors import Unavailable
from gpustack.worker.ports import PortPool
from support.running import free_ports


@pytest.fixture
def span() -> list[int]:
    """Three ports that are free now."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_each_taker_gets_another_port(span: list[int]) -> None:
    pool = PortPool(span)

    leases = [pool.take(f"i{n}") for n in range(3)]

    assert [lease.port for lease in leases] == span
    for lease in leases:
        lease.free()


def test_a_port_that_somebody_listens_on_is_passed_over(span: list[int]) -> None:
    pool = PortPool(span)

    with socket.create_server(("", span[0])):
        lease = pool.take("a")

    assert lease.port == span[1]
    lease.free()


def test_a_held_port_can_be_opened_once_it_is_let_go(span: list[int]) -> None:
    pool = PortPool(span[:1])
    lease = pool.take("a")

    with pytest.raises(OSError, match="in use"), socket.socket() as plain:
        plain.bind(("127.0.0.1", lease.port))
    lease.let_go()
    with socket.create_server(("127.0.0.1", lease.port)):
        pass
    with pytest.raises(Unavailable):
        pool.take("b")


def test_a_port_given_back_is_taken_again_after_the_others(span: list[int]) -> None:
    pool = PortPool(span)
    pool.take("a").free()

    ports = []
    for _ in range(3):
        lease = pool.take("b")
        ports.append(lease.port)
        lease.free()

    assert ports == [span[1], span[2], span[0]]


def test_an_adopted_port_is_not_given_out(span: list[int]) -> None:
    pool = PortPool(span[:2])
    pool.adopt(span[0], "old")

    lease = pool.take("new")

    assert lease.port == span[1]
    lease.free()


def test_the_port_of_an_adopted_engine_rests_after_its_end(span: list[int]) -> None:
    pool = PortPool(span)
    pool.adopt(span[0], "old").free()
    pool.rest(span[1])

    leases = [pool.take(f"i{n}") for n in range(3)]

    assert [lease.port for lease in leases] == [span[2], span[0], span[1]]
    for lease in leases:
        lease.free()


def test_exhaustion_names_option_range_and_holders(span: list[int]) -> None:
    pool = PortPool(span)
    mine = pool.take("chat-abcde")

    with socket.create_server(("", span[1])), socket.create_server(("", span[2])):
        with pytest.raises(Unavailable) as caught:
            pool.take("b")

    message = caught.value.message
    assert f"--service-port-range ({span[0]}-{span[2]})" in message
    assert f"chat-abcde ({span[0]})" in message
    assert "other programs (2 ports)" in message
    assert "\n" not in message
    mine.free()
    pool.take("b").free()


def test_many_holders_are_counted_not_listed() -> None:
    pool = PortPool(range(50000, 50020))
    for port in range(50000, 50020):
        pool.adopt(port, f"i{port}")

    with pytest.raises(Unavailable, match="14 more instances"):
        pool.take("b")


def test_an_empty_range_is_said() -> None:
    with pytest.raises(Unavailable, match="it is empty"):
        PortPool([]).take("a")


def test_chosen_ports_are_given_together_or_not_at_all() -> None:
    pool, (first, second) = PortPool([]), free_ports(2)
    leases = pool.take_these([first, second], "one")
    assert leases is not None
    assert [each.port for each in leases] == [first, second]
    assert pool.take_these([second], "two") is None

    leases[0].free()
    assert pool.take_these([first, second], "two") is None, "the second is taken still"
    again = pool.take_these([first], "two")
    assert again is not None, "and the first was given back"
    for each in (*leases, *again):
        each.free()


def test_when_there_are_not_enough_none_is_kept() -> None:
    ports = free_ports(2)
    pool = PortPool(ports)
    with pytest.raises(Unavailable, match="one"):
        pool.take_many(3, "one")

    taken = pool.take_many(2, "two")
    assert sorted(each.port for each in taken) == sorted(ports)
    for each in taken:
        each.free()
