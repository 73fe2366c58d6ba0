"""The contract of a login provider: people sign in elsewhere and come back with who they are.

Experimental: it is settled by the first providers that use it, and may change until a release says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpustack.plugin.contracts import Extension, S
from gpustack.plugin.errors import PluginError


class LoginRefused(PluginError):
    """This person is not signed in, for a reason that they may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAttempt:
    """Somebody wants to sign in."""

    #: What the provider sends back; GPUStack binds it to this browser.
    state: str
    #: Where the provider is to send the browser afterwards.
    callback_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Where the browser goes next. ``remember`` comes back in the reply, out of sight of the browser."""

    url: str
    remember: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginReply:
    """The browser came back. ``parameters`` are those of the query and of a posted form; ``state`` has been checked."""

    parameters: Mapping[str, str]
    callback_url: str
    remembered: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who it is. ``subject`` never changes at the provider and is what an account is known by; a name may change."""

    subject: str
    username: str
    full_name: str = ""
    avatar_url: str = ""
    groups: Sequence[str] = ()


class AuthProvider(Extension[S], ABC):
    """Signs people in by sending them elsewhere. Passwords stay with the core."""

    #: What the button says, as in "Sign in with Acme".
    label: str = ""

    @abstractmethod
    async def begin(self, attempt: LoginAttempt) -> Redirect:
        """Return where to send the browser. Raises TryAgain while the provider cannot be asked."""

    @abstractmethod
    async def complete(self, reply: LoginReply) -> Identity:
        """Return who came back. Raises LoginRefused with a reason; anything else signs nobody in, too."""

    async def logout(self, identity: Identity) -> Redirect | None:
        """Return where to send the browser to sign out there too; None, the default, for nowhere."""
        del identity
        return None

    async def documents(self) -> Mapping[str, tuple[str, bytes]]:
        """Return what the provider wants to fetch from us, as content type and bytes by file name; none by default."""
        return {}
