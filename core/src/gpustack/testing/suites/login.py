"""The contract of login providers, as far as it is settled. Experimental, as the contract itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from gpustack.plugin import AuthProvider, Identity, LoginAttempt, LoginReply, PluginError, Redirect, TryAgain
from gpustack.testing.suites.base import ExtensionSuite, error_line
from gpustack.testing.suites.checks import are_texts, is_url

_CALLBACK = "https://gpustack.example.com/auth/callback"
_STATE = "state-of-the-suite_0123456789"


class AuthProviderSuite(ExtensionSuite[AuthProvider[Any]]):
    """Holds what :class:`gpustack.plugin.AuthProvider` promises.

    What needs the provider's own server is skipped when ``begin`` raises TryAgain; start a fake one in the fixture
    ``settings`` to hold it.
    """

    kind = "auth_providers"

    def test_its_label_fits_a_button(self) -> None:
        """It stands behind "Sign in with": a few words on one line."""
        self.one_line(self.extension.label, "label, what the button says,")

    def test_begin_sends_the_browser_somewhere(self, made: AuthProvider[Any]) -> None:
        """The answer is an absolute URL of http or https: a browser follows nothing else."""
        redirect = self._begin(made)
        assert is_url(redirect.url), f"begin sends the browser to {redirect.url!r}; give an absolute URL"

    def test_begin_sends_the_state_along(self, made: AuthProvider[Any]) -> None:
        """The provider sends ``state`` back, by which GPUStack knows that this browser began; without it nobody gets in."""
        url = self._begin(made).url
        values = [value for _, value in parse_qsl(urlsplit(url).query)]
        assert _STATE in values or _STATE in unquote(url), f"begin leaves attempt.state out of {url!r}"

    def test_begin_remembers_text(self, made: AuthProvider[Any]) -> None:
        """``remember`` is kept beside the session: names and values are text."""
        remember = self._begin(made).remember
        assert are_texts(remember), f"remember is {remember!r}; give a mapping of texts to texts"

    def test_several_people_may_begin_at_once(self, made: AuthProvider[Any]) -> None:
        """Each attempt has its own state, and gets it back."""

        async def begin(entered: AuthProvider[Any]) -> list[Redirect]:
            states = [f"state-number-{number}" for number in range(5)]
            return await asyncio.gather(*(entered.begin(_attempt(each)) for each in states))

        for number, redirect in enumerate(self._used(made, begin)):
            assert f"state-number-{number}" in unquote(redirect.url), (
                "begin gave one attempt the state of another"
            )

    def test_a_browser_that_brings_nothing_is_not_signed_in(self, made: AuthProvider[Any]) -> None:
        """Anybody can open the callback's address."""
        self._refuses(made, {})

    def test_a_login_that_failed_there_is_refused(self, made: AuthProvider[Any]) -> None:
        """The provider says that it failed; the person reads why."""
        self._refuses(made, {"error": "access_denied", "error_description": "the user\nsaid no"})

    def test_made_up_answers_are_refused(self, made: AuthProvider[Any]) -> None:
        """Who brings a code or an assertion that the provider never gave is not signed in."""
        made_up = {"code": "made-up", "SAMLResponse": "bWFkZS11cA==", "user": "admin", "token": "made-up"}
        self._refuses(made, made_up)

    def test_logout_leads_somewhere_or_nowhere(self, made: AuthProvider[Any]) -> None:
        """It returns a Redirect with an absolute URL, or None."""

        async def leave(entered: AuthProvider[Any]) -> object:
            return await entered.logout(Identity(subject="1", username="suite"))

        answer = self._used(made, leave)
        assert answer is None or (isinstance(answer, Redirect) and urlsplit(answer.url).hostname), (
            f"logout returned {answer!r}; return a Redirect with an absolute URL, or None"
        )

    def test_documents_are_files(self, made: AuthProvider[Any]) -> None:
        """Each has a name without a folder, a content type and bytes."""

        async def ask(entered: AuthProvider[Any]) -> Mapping[str, tuple[str, bytes]]:
            return await entered.documents()

        documents = self._used(made, ask)
        assert isinstance(documents, Mapping), f"documents returned {documents!r}; return a mapping"
        for name, (kind, content) in documents.items():
            assert "/" not in name, f"documents holds {name!r}; give a file name without a folder"
            assert "/" in kind, f"{name} is said to be {kind!r}; give a content type such as text/xml"
            assert isinstance(content, bytes), f"{name} is {type(content).__name__}; give bytes"

    def _begin(self, made: AuthProvider[Any]) -> Redirect:
        async def begin(entered: AuthProvider[Any]) -> object:
            return await self.awaited("begin", entered.begin(_attempt(_STATE)))

        redirect = self._used(made, begin)
        assert isinstance(redirect, Redirect), f"begin returned {redirect!r}; return a Redirect"
        return redirect

    def _refuses(self, made: AuthProvider[Any], parameters: Mapping[str, str]) -> None:
        async def complete(entered: AuthProvider[Any]) -> tuple[object, PluginError | None]:
            redirect = await entered.begin(_attempt(_STATE))
            reply = LoginReply(
                parameters=parameters, callback_url=_CALLBACK, remembered=dict(redirect.remember)
            )
            try:
                return await self.awaited("complete", entered.complete(reply)), None
            except PluginError as error:
                return None, error

        identity, error = self._used(made, complete)
        assert error is not None, (
            f"complete signs {identity!r} in for {dict(parameters)!r}; raise LoginRefused"
        )
        self.one_line(str(error), "the reason that complete refuses with")

    def _used(self, made: AuthProvider[Any], use: Callable[[AuthProvider[Any]], Awaitable[Any]]) -> Any:
        try:
            return self.used(made, use)
        except TryAgain as error:
            self.waits(error, "the provider")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(
                f"the provider raised {error_line(error)}; raise LoginRefused or TryAgain with a reason"
            )


def _attempt(state: str) -> LoginAttempt:
    return LoginAttempt(state=state, callback_url=_CALLBACK)
