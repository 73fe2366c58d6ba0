"""Acme Gateway: tells a proxy what GPUStack serves, here by a file that the proxy reads again when it changes."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel

from gpustack.plugin import Gateway, Option, RoutingDelta, RoutingTable, TryAgain, Verdict, hookimpl

#: The version of GPUStack's plugin API that this was written for.
plugin_api_version = "1.0"


class AcmeGatewaySettings(BaseModel):
    """An option of `gpustack start`."""

    acme_gateway_gateway_url: Annotated[
        str, Option(help="Where clients reach the acme-gateway proxy.", value="URL")
    ] = "http://localhost:8080"


class AcmeGatewayGateway(Gateway[AcmeGatewaySettings]):
    """Writes the whole table each time: the proxy finds out itself what is new."""

    name = "acme-gateway"
    settings_type = AcmeGatewaySettings
    #: Why it does not serve; empty when it does.
    trouble = "it is not entered"

    async def __aenter__(self) -> Self:
        self.trouble = "there is no routing table yet"
        return self

    async def __aexit__(self, *error: object) -> None:
        self.trouble = "it is left"

    @property
    def file(self) -> Path:
        """What the proxy reads."""
        return self.host.data_dir / "acme-gateway-routes.json"

    @property
    def public_urls(self) -> Sequence[str]:
        entered = self.trouble not in ("it is not entered", "it is left")
        return [self.settings.acme_gateway_gateway_url.rstrip("/")] if entered else []

    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        try:
            await asyncio.to_thread(self._write, _document(table))
        except OSError as error:
            self.trouble = f"{self.file} cannot be written: {error.strerror}"
            raise TryAgain(self.trouble, after=5) from error
        self.trouble = ""

    async def health(self) -> Verdict:
        return Verdict.no(self.trouble) if self.trouble else Verdict.yes()

    def _write(self, document: dict[str, object]) -> None:
        # Moved into its place as a whole; only its owner may read it, since doors' credentials are in it.
        half = self.file.with_suffix(".new")
        half.touch(mode=0o600)
        half.write_text(json.dumps(document), encoding="utf-8")
        half.replace(self.file)


def _document(table: RoutingTable) -> dict[str, object]:
    return {
        "version": table.version,
        "routes": {
            name: [
                {
                    "url": f"http://{each.host}:{each.port}{each.path_prefix}",
                    "credential": each.credential,
                    "model": each.served_name,
                    "weight": each.weight,
                }
                for each in route.targets
            ]
            for name, route in table.routes.items()
        },
        # A proxy looks at the clock itself: nobody tells it that a key is over.
        "principals": {
            digest: {
                "models": None if each.allowed is None else sorted(each.allowed),
                "until": each.expires_at,
            }
            for digest, each in table.principals.items()
        },
    }


@hookimpl
def register_gateways() -> list[type[AcmeGatewayGateway]]:
    """Bring the gateway."""
    return [AcmeGatewayGateway]
