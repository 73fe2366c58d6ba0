"""AcmeLoginLogin keeps the contract, and signs in who Acme Login says it is."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gpustack_acme_login import AcmeLoginLogin, AcmeLoginSettings

from gpustack.plugin import Host, LoginRefused, LoginReply
from gpustack.testing import AuthProviderSuite


class AcmeLogin(BaseHTTPRequestHandler):
    """A Acme Login that knows one code."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = b"code=right" in body
        self._answer(200 if good else 400, {"access_token": "t"} if good else {"error": "invalid_grant"})

    def do_GET(self) -> None:
        self._answer(200, {"sub": "7", "name": "ada"})

    def _answer(self, status: int, body: dict[str, str]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where it answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), AcmeLogin) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestContract(AuthProviderSuite):
    """What GPUStack expects of every login provider."""

    extension = AcmeLoginLogin

    @pytest.fixture
    def settings(self, url: str) -> AcmeLoginSettings:
        """Those that lead to the Acme Login of the tests."""
        return AcmeLoginSettings(acme_login_url=url)


def test_who_brings_the_right_code_is_signed_in(url: str, tmp_path: Path) -> None:
    host = Host(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    login = AcmeLoginLogin(AcmeLoginSettings(acme_login_url=url), host)
    right = LoginReply(parameters={"code": "right"}, callback_url="https://gpustack.invalid/callback")
    identity = asyncio.run(login.complete(right))
    assert (identity.subject, identity.username) == ("7", "ada")
    wrong = LoginReply(parameters={"code": "wrong"}, callback_url="https://gpustack.invalid/callback")
    with pytest.raises(LoginRefused):
        asyncio.run(login.complete(wrong))
