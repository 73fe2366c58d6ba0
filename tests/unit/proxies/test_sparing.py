"""What this machine and its server say to each other takes no proxy."""

from __future__ import annotations

import os

import httpx
import pytest

from gpustack.kit.net import spare_proxies

OWN = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, None),
        ({"NO_PROXY": "example.com"}, "example.com"),
        ({"HTTP_PROXY": "http://proxy:3128"}, OWN),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "a, .b"}, f"a,.b,{OWN}"),
        ({"ALL_PROXY": "http://proxy:3128", "NO_PROXY": "upper", "no_proxy": "lower"}, f"lower,{OWN}"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "127.0.0.1"}, "127.0.0.1,localhost,::1"),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "*"),
        ({"HTTP_PROXY": "", "HTTPS_PROXY": ""}, None),
    ],
)
def test_this_machine_is_added_where_there_is_a_proxy(given: dict[str, str], then: str | None) -> None:
    environ = dict(given)
    spare_proxies(environ)
    assert environ.get("NO_PROXY") == then
    if then not in (None, given.get("NO_PROXY")):
        assert environ["no_proxy"] == then
    again = dict(environ)
    spare_proxies(again)
    assert again == environ


@pytest.mark.parametrize("server", ["192.0.2.10", "gpustack.example.com", "2001:db8::1"])
def test_our_client_goes_straight_to_the_server(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.com:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    spare_proxies(os.environ, server)
    with httpx.Client() as client:
        shown = f"[{server}]" if ":" in server else server
        straight = [client._transport_for_url(httpx.URL(f"http://{host}:80/")) for host in (shown, "[::1]")]
        other = client._transport_for_url(httpx.URL("http://elsewhere.example.com/"))
    assert {type(each._pool).__name__ for each in straight} == {"ConnectionPool"}
    assert type(other._pool).__name__ == "HTTPProxy"
