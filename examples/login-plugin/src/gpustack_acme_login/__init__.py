"""Acme Login: people sign in there, and come back with who they are, as OAuth 2 does it."""

from typing import Annotated, Any
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel

from gpustack.plugin import (
    AuthProvider,
    Identity,
    LoginAttempt,
    LoginRefused,
    LoginReply,
    Option,
    Redirect,
    TryAgain,
    hookimpl,
)

#: The version of GPUStack's plugin API that this was written for.
plugin_api_version = "1.0"


class AcmeLoginSettings(BaseModel):
    """Options of `gpustack start`."""

    acme_login_url: Annotated[str, Option(help="Where Acme Login is.", value="URL")] = "https://acme-login.invalid"
    acme_login_client_id: Annotated[str, Option(help="As whom GPUStack is known at Acme Login.")] = "gpustack"
    acme_login_client_secret: Annotated[str, Option(help="What Acme Login gave GPUStack.", secret=True)] = ""


class AcmeLoginLogin(AuthProvider[AcmeLoginSettings]):
    """Sends the browser to ``/authorize``, and asks ``/token`` and ``/userinfo`` who came back."""

    name = "acme-login"
    settings_type = AcmeLoginSettings
    label = "Acme Login"

    async def begin(self, attempt: LoginAttempt) -> Redirect:
        query = {
            "response_type": "code",
            "client_id": self.settings.acme_login_client_id,
            "redirect_uri": attempt.callback_url,
            "state": attempt.state,
        }
        return Redirect(url=f"{self.settings.acme_login_url}/authorize?{urlencode(query)}")

    async def complete(self, reply: LoginReply) -> Identity:
        if "error" in reply.parameters:
            said = reply.parameters.get("error_description") or reply.parameters["error"]
            raise LoginRefused(f"Acme Login says: {' '.join(said.split())}")
        if "code" not in reply.parameters:
            raise LoginRefused("Acme Login sent no code; sign in again")
        async with httpx.AsyncClient(base_url=self.settings.acme_login_url, timeout=10) as client:
            form = {
                "grant_type": "authorization_code",
                "code": reply.parameters["code"],
                "redirect_uri": reply.callback_url,
                "client_id": self.settings.acme_login_client_id,
                "client_secret": self.settings.acme_login_client_secret,
            }
            token = (await _asked(client, "POST", "/token", data=form)).get("access_token")
            header = {"Authorization": f"Bearer {token}"}
            person = await _asked(client, "GET", "/userinfo", headers=header)
        if not (token and person.get("sub")):
            raise LoginRefused("Acme Login does not say who this is")
        return Identity(subject=str(person["sub"]), username=str(person.get("name") or person["sub"]))


async def _asked(client: httpx.AsyncClient, method: str, path: str, **what: Any) -> dict[str, Any]:
    try:
        answer = await client.request(method, path, **what)
    except httpx.HTTPError as error:
        raise TryAgain(f"Acme Login cannot be asked ({type(error).__name__})", after=5) from error
    try:
        said = answer.json()
    except ValueError:
        said = None
    if answer.is_error or not isinstance(said, dict):
        raise LoginRefused(f"Acme Login does not accept this login ({answer.status_code})")
    return said


@hookimpl
def register_auth_providers() -> list[type[AcmeLoginLogin]]:
    """Bring the login provider."""
    return [AcmeLoginLogin]
