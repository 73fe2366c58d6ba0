"""Our gateways and login providers keep their contracts, and so does a small web app."""

from pathlib import Path
from typing import ClassVar

from gpustack.plugin import NoSettings, WebApp
from gpustack.testing import AuthProviderSuite, GatewaySuite, WebAppSuite
from gpustack.testing.fakes.gateway import FakeGateway
from gpustack.testing.fakes.login import FakeLogin


class TestFakeGateway(GatewaySuite):
    extension = FakeGateway


class TestFakeLogin(AuthProviderSuite):
    extension = FakeLogin
    given: ClassVar = {"fake_login_user": "alice"}


class TestFakeLoginOfNobody(AuthProviderSuite):
    extension = FakeLogin


class Pages(WebApp[NoSettings]):
    name = "pages"
    settings_type = NoSettings
    path = "/pages"

    def files(self) -> Path:
        return Path(__file__).parent / "pages"


class TestPages(WebAppSuite):
    extension = Pages
