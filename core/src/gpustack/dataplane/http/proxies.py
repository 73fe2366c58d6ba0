"""Whose word is taken on where a request comes from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from gpustack.dataplane.http.request import Header


class TrustedProxies:
    """Networks whose proxies stand in front of us. Raises ValueError for what is no network."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(each, strict=False) for each in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, peer: str) -> bool:
        """Tell whether ``peer`` is one of them."""
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address.version == each.version and address in each for each in self._networks)

    def client(self, peer: str, headers: Iterable[Header]) -> str:
        """Return who asked, by what the trusted ``peer`` and those before it say in X-Forwarded-For.

        Read from the end: whoever is not trusted may have written anything before itself.
        """
        said = b",".join([value for name, value in headers if name == b"x-forwarded-for"]).decode("latin-1")
        for entry in reversed(said.split(",")):
            address = _address(entry.strip())
            if address is None:
                break
            peer = address
            if not self.trusts(address):
                break
        return peer

    @staticmethod
    def tls(headers: Iterable[Header]) -> bool:
        """Tell whether the last proxy was asked over TLS."""
        said = [value for name, value in headers if name == b"x-forwarded-proto"]
        return bool(said) and said[-1].split(b",")[-1].strip().lower() == b"https"


def _address(entry: str) -> str | None:
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        return str(ipaddress.ip_address(entry))
    except ValueError:
        return None
