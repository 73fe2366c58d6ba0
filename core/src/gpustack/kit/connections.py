"""Who is connected to a port of this machine."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import psutil

_ESTABLISHED = b"01"
#: Loopback in the kernel's tables, where each four bytes of an address stand in the machine's order.
_V4 = b"7F"
_V6 = (b"0000000000000000FFFF00000100007F", b"00000000000000000000000001000000")


def loopback_clients(port: int) -> int:
    """Return how many connections to ``port`` on loopback are established, accepted by its program or not yet.

    Reads the system's table, which blocks for a moment. Raises OSError when the system does not tell.
    """
    if sys.platform == "linux":
        return _served("/proc/net/tcp", port, _V4) + _served("/proc/net/tcp6", port, _V6)
    else:
        try:
            found = psutil.net_connections(kind="tcp")
        except psutil.Error as error:
            raise PermissionError(f"the system does not show its connections: {error}") from error
        own = (each.laddr for each in found if each.status == psutil.CONN_ESTABLISHED and each.laddr)
        return sum(address.port == port and ipaddress.ip_address(address.ip).is_loopback for address in own)


def _served(table: str, port: int, loopback: bytes | tuple[bytes, ...]) -> int:
    try:
        lines = Path(table).read_bytes().splitlines()
    except FileNotFoundError:
        return 0  # a machine without IPv6
    end = b":%04X" % port
    # A table that changes while it is read may name one twice.
    found = set()
    for line in lines:
        if end in line:
            _, local, remote, state, *_ = line.split(None, 4)
            address = local.removesuffix(end)
            if address != local and state == _ESTABLISHED and address.endswith(loopback):
                found.add(remote)
    return len(found)
