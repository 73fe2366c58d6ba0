"""The embedded gateway keeps its contract, and does with requests all that a gateway does."""

from typing import ClassVar

import pytest

from gpustack.testing import GatewaySuite, GatewayTrafficSuite
from gpustack_gateway.embedded import EmbeddedGateway

pytestmark = pytest.mark.xdist_group("gateway-traffic")


class TestEmbedded(GatewaySuite):
    extension = EmbeddedGateway


class TestEmbeddedTraffic(GatewayTrafficSuite):
    extension = EmbeddedGateway
    given: ClassVar = {"gateway_concurrency": 2}
