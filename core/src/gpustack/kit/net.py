"""Addresses and ports: listen, hold, and say clearly why not."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, MutableMapping

from gpustack.kit.errors import GPUStackError

LOOPBACK = "127.0.0.1"
#: What names this machine to itself.
_OWN_NAMES = ("localhost", LOOPBACK, "::1")


def listen(port: int, *, host: str = "0.0.0.0", option: str = "--port", backlog: int = 2048) -> socket.socket:
    """Return a listening TCP socket; ``port`` 0 takes a free one.

    Raises GPUStackError with one line that names ``option`` when the port is privileged or taken.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise GPUStackError(_refused(port, host, option, error)) from error
    return sock


def _refused(port: int, host: str, option: str, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs a privilege this user lacks; choose one above 1023, such as 9080, with {option}"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by {program_name(holder(port))}; choose another with {option}"
    return f"port {port} on {host} cannot be opened ({error.strerror}); choose another with {option}"


def refusal(port: int, *, host: str = "0.0.0.0", option: str = "--port") -> str:
    """Return why :func:`listen` would refuse, as a line that names ``option``; empty when it would not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError as error:
            return _refused(port, host, option, error)
    return ""


def holder(port: int) -> int | None:
    """Return the process that listens on ``port``; None when there is none, or it is another user's and hidden."""
    import psutil

    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    return next(
        (
            each.pid
            for each in found
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
        ),
        None,
    )


def program_name(pid: int | None) -> str:
    """Return what a process is called, as in ``python3 (process 4711)``; ``another program`` where that is not known."""
    import psutil

    try:
        return "another program" if pid is None else f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return "another program"


def interface_addresses() -> dict[str, list[str]]:
    """Return the addresses of each network interface of this machine, IPv4 before IPv6 and without link-local ones."""
    import psutil

    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        texts = [
            each.address.partition("%")[0]
            for family in (socket.AF_INET, socket.AF_INET6)
            for each in addresses
            if each.family == family
        ]
        found[name] = [text for text in texts if not ipaddress.ip_address(text).is_link_local]
    return found


def hold(port: int, *, host: str = LOOPBACK) -> socket.socket | None:
    """Take ``port`` so that nobody else does; None when it is not free.

    Close the socket right before the program that is to use the port starts. The port counts as free only
    when nobody listens on it at any local address.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # An any-address bind fails where SO_REUSEADDR would hide a listener of another address.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        # SO_REUSEADDR lets two sockets have a port as long as neither listens.
        sock.listen(1)
    except OSError:
        sock.close()
        return None
    return sock


def hold_first(ports: Iterable[int], *, host: str = LOOPBACK) -> socket.socket | None:
    """Hold the first free port of ``ports``; None when there is none."""
    for port in ports:
        if (sock := hold(port, host=host)) is not None:
            return sock
    return None


def own_address(towards: str = "") -> str:
    """Return the address this machine uses towards the host ``towards``, or the loopback one when it has no route.

    Empty is any machine far away, and so is a name that means nothing (yet). Nothing but the name's own lookup is
    sent: connecting a datagram socket only asks the routing table.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((towards or "192.0.2.1", 9))
            address = str(sock.getsockname()[0])
        except (OSError, UnicodeError):
            return own_address() if towards else LOOPBACK
    found = ipaddress.ip_address(address)
    if towards and found.is_loopback:
        return own_address()  # a tunnel, or this very machine, which others reach otherwise
    return LOOPBACK if found.is_unspecified else address


def bracketed(address: str) -> str:
    """Return an address as a URL has it, IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def spare_proxies(environ: MutableMapping[str, str], server: str | None = None) -> None:
    """Add this machine and ``server`` to what goes without a proxy, where ``environ`` names a proxy at all.

    Servers and workers speak to each other directly, or not at all; a proxy is for what comes from elsewhere.
    """
    if not any(environ.get(name) for scheme in ("HTTP", "HTTPS", "ALL") for name in _both(f"{scheme}_PROXY")):
        return
    own = [*_OWN_NAMES, *([server] if server else [])]
    # Programs differ in which of the two spellings they read, and in which wins.
    given = next((environ[name] for name in reversed(_both("NO_PROXY")) if environ.get(name)), "")
    hosts = [host for part in given.split(",") if (host := part.strip())]
    if "*" not in hosts:
        hosts += [host for host in own if host not in hosts]
    for name in _both("NO_PROXY"):
        environ[name] = ",".join(hosts)


def _both(name: str) -> tuple[str, str]:
    return name, name.lower()
