"""A login provider that signs in whom it is told to, and asks nobody. It stands for OIDC, SAML and their like; for tests only.

The browser is sent straight back to GPUStack. ``--fake-login-user NAME`` says who it is then; without it, everybody is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict

from gpustack.plugin import (
    AuthProvider,
    Identity,
    LoginAttempt,
    LoginRefused,
    LoginReply,
    Option,
    Redirect,
    hookimpl,
)


class FakeLoginSettings(BaseModel):
    """Who is signed in."""

    model_config = ConfigDict(frozen=True)

    fake_login_user: Annotated[
        str, Option(value="NAME", help="For tests: whom the fake login signs in; nobody when it is empty.")
    ] = ""
    fake_login_groups: Annotated[
        tuple[str, ...], Option(value="NAME,…", help="For tests: the groups of whom the fake login signs in.")
    ] = ()


class FakeLogin(AuthProvider[FakeLoginSettings]):
    """Sends the browser straight back with a ticket, and knows it again."""

    name = "fake"
    settings_type = FakeLoginSettings
    label = "Fake login"

    async def begin(self, attempt: LoginAttempt) -> Redirect:
        """Return the callback itself."""
        ticket = f"ticket-{attempt.state}"
        query = urlencode({"state": attempt.state, "ticket": ticket})
        mark = "&" if "?" in attempt.callback_url else "?"
        return Redirect(url=f"{attempt.callback_url}{mark}{query}", remember={"ticket": ticket})

    async def complete(self, reply: LoginReply) -> Identity:
        """Return the user of the settings, to a browser with the ticket."""
        ticket = reply.remembered.get("ticket")
        if not ticket or reply.parameters.get("ticket") != ticket:
            raise LoginRefused("this login was not begun here; begin again")
        user = self.settings.fake_login_user
        if not user:
            raise LoginRefused("the fake login was told to sign nobody in (--fake-login-user)")
        return Identity(
            subject=f"fake:{user}", username=user, full_name=user, groups=self.settings.fake_login_groups
        )


@hookimpl
def register_auth_providers() -> Iterable[type[AuthProvider[Any]]]:
    """Return the one provider there is here."""
    return [FakeLogin]
