"""AcmeGatewayGateway keeps the contract, and writes what its proxy needs."""

import asyncio
import json
import logging
from pathlib import Path

from gpustack_acme_gateway import AcmeGatewayGateway, AcmeGatewaySettings

from gpustack.plugin import GatewayHost, Principal, Route, RoutingTable, Target
from gpustack.testing import GatewaySuite


class TestContract(GatewaySuite):
    """What GPUStack expects of every gateway."""

    extension = AcmeGatewayGateway


def test_the_proxy_learns_where_a_model_is(tmp_path: Path) -> None:
    host = GatewayHost(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    gateway = AcmeGatewayGateway(AcmeGatewaySettings(), host)
    target = Target(instance_id=1, host="10.0.0.7", port=4000)
    alice = Principal(user_id=1, username="alice", allowed=frozenset({"tiny"}), expires_at=1_800_000_000.0)
    table = RoutingTable(
        version=3,
        routes={"tiny": Route(name="tiny", created=0, targets=(target,))},
        principals={"a digest": alice},
    )

    async def serve() -> None:
        async with gateway:
            await gateway.apply(table, None)

    asyncio.run(serve())
    written = json.loads(gateway.file.read_text(encoding="utf-8"))
    assert written["routes"]["tiny"] == [
        {"url": "http://10.0.0.7:4000", "credential": "", "model": "", "weight": 100}
    ]
    assert written["principals"] == {"a digest": {"models": ["tiny"], "until": 1_800_000_000.0}}
