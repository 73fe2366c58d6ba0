"""One HTTP connection pool to one server: who is asked how, and what failures become.

HTTP status codes turn into :mod:`gpustack.kit.errors` here and nowhere else on the client's side.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from gpustack import __version__
from gpustack.kit.errors import (
    Conflict,
    Forbidden,
    GPUStackError,
    InvalidInput,
    NotFound,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from gpustack.schemas.workers import SESSION_HEADER

#: Seconds to wait for a connection, and between two pieces of an ordinary answer.
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0

_LONGEST_MESSAGE = 4096
_BY_STATUS: dict[int, type[GPUStackError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: InvalidInput,
    415: InvalidInput,
    422: InvalidInput,
}
_LATER: dict[int, type[Throttled | Unavailable]] = {
    429: Throttled,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
#: What OpenSSL says when the other side answers in plain text.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
#: Without a message of ours in them these come from somebody else.
_NOT_OURS = frozenset({400, 403, 404, 405, 501})


class Stranger(GPUStackError):
    """What answers at the URL is no GPUStack server."""


class Gone(GPUStackError):
    """HTTP 410: the events asked for are no longer kept; only the watch sees this."""


def checked_url(url: str) -> httpx.URL:
    """Return ``url`` parsed, without a slash at its end; InvalidInput with one line when it is no server's URL."""
    text = url.strip().rstrip("/")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{text!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"{text!r} is not a server's URL; give it as in http://192.0.2.10:9080")
    if parsed.userinfo:
        raise InvalidInput("a server's URL takes no user name or password; use `gpustack login URL`")
    if parsed.query or parsed.fragment:
        raise InvalidInput(f"{text!r} has a query or fragment; a server's URL ends with its port or path")
    return parsed


def is_loopback(host: str) -> bool:
    """Tell whether ``host`` names this very machine."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Transport:
    """Sends requests to one server. Use it through :class:`gpustack.client.Client`."""

    def __init__(
        self,
        base_url: str,
        credential: str = "",
        *,
        verify: bool | ssl.SSLContext = True,
        timeout: float = READ_TIMEOUT,
        renew: Callable[[], str] | None = None,
    ) -> None:
        url = checked_url(base_url)
        self.base_url = str(url)
        self.credential = credential
        #: The number of a worker's start; 0 is none.
        self.session = 0
        self._renew = renew
        self._read_timeout = timeout
        # Without TLS there is nothing to verify, and loading the authorities costs tens of milliseconds.
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=verify if url.scheme == "https" else False,
            trust_env=not is_loopback(url.host),
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            headers={"User-Agent": f"gpustack/{__version__}"},
        )

    def __repr__(self) -> str:
        return f"Transport({self.base_url!r})"

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        form: Mapping[str, str] | None = None,
    ) -> Any:
        """Send one request and return the JSON of its answer, or None when there is none."""
        async with self.stream(
            method, path, params=params, body=body, form=form, read_timeout=self._read_timeout
        ) as response:
            try:
                content = await response.aread()
            except httpx.HTTPError as error:
                raise self.trouble(error) from error
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise Stranger(
                f"{self.base_url} answered {path} with something that is not JSON; is it a GPUStack server?"
            ) from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        form: Mapping[str, str] | None = None,
        read_timeout: float | None = READ_TIMEOUT,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request and give its answer while the body is still to be read.

        ``read_timeout`` is the longest silence in seconds, None for any; errors raise before the body is given.
        Trouble while the caller reads the body is the caller's: see :meth:`trouble`.
        """
        what = {"params": _plain(params), "json": body, "data": form}
        response = await self._answer(method, path, what, read_timeout)
        if response.status_code == httpx.codes.UNAUTHORIZED and self._renewed():
            # Nothing was done for a request that was refused so: it can be sent again, whatever it asks.
            await response.aclose()
            response = await self._answer(method, path, what, read_timeout)
        try:
            if not response.is_success:
                raise await self._refusal(response)
            yield response
        finally:
            await response.aclose()

    async def _answer(
        self, method: str, path: str, what: dict[str, Any], read_timeout: float | None
    ) -> httpx.Response:
        request = self._http.build_request(method, path, headers=self._headers(), **what)
        request.extensions["timeout"] = {**request.extensions["timeout"], "read": read_timeout}
        try:
            return await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise self.trouble(error) from error

    def _renewed(self) -> bool:
        """Take the credential that is valid now; False when it is the one that was refused."""
        fresh = self._renew() if self._renew is not None else self.credential
        changed, self.credential = fresh != self.credential, fresh
        return changed

    def _headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.credential}"} if self.credential else {}
        return {**headers, SESSION_HEADER: str(self.session)} if self.session else headers

    async def _refusal(self, response: httpx.Response) -> GPUStackError:
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            return self.trouble(error)
        said = _message_in(content)
        status = response.status_code
        if response.is_redirect:
            return Stranger(
                f"{self.base_url} redirects to {response.headers.get('location', 'another place')}; use that URL"
            )
        if status == httpx.codes.GONE:
            return Gone(said or "no longer there")
        text = said or f"{self.base_url} answered {status} {response.reason_phrase}".rstrip()
        if not said and status in _NOT_OURS:
            return Stranger(f"{text}; {_stranger(content, self.base_url)}")
        if status in _LATER:
            return _LATER[status](text, retry_after=_retry_after(response))
        return _BY_STATUS.get(status, GPUStackError)(text)

    def trouble(self, error: httpx.HTTPError) -> Unavailable:
        """Return what a user should read when the connection failed."""
        if isinstance(error, httpx.ConnectTimeout):
            text = f"cannot reach {self.base_url}: no answer within {CONNECT_TIMEOUT:.0f} s"
        elif isinstance(error, httpx.ConnectError):
            text = f"cannot reach {self.base_url}: {_reason(error)}"
        elif isinstance(error, httpx.TimeoutException):
            text = f"{self.base_url} accepted the request but did not answer in time"
        else:
            text = f"the connection to {self.base_url} broke: {_reason(error)}"
        return Unavailable(text, retry_after=1.0)


def _stranger(content: bytes, url: str) -> str:
    """Return what may be wrong with a URL at which something else answers."""
    if url.startswith("http://") and b"HTTPS" in content.upper():
        return f"it speaks HTTPS there: try https://{url.removeprefix('http://')}"
    return "is it a GPUStack server?"


def _plain(params: Mapping[str, Any] | None) -> dict[str, str] | None:
    if params is None:
        return None
    wire = {True: "true", False: "false"}
    return {
        key: wire[value] if isinstance(value, bool) else str(value)
        for key, value in params.items()
        if value is not None
    }


def _reason(error: BaseException) -> str:
    """Return the operating system's word for a failure, which lies at the bottom of the chain."""
    deepest = error
    while (cause := _cause(deepest)) is not None:
        deepest = cause
    if isinstance(deepest, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({deepest.verify_message})"
    if isinstance(deepest, ssl.SSLError) and deepest.reason in _NO_TLS:
        return "it does not speak HTTPS there; try http:// instead of https://"
    # A name that cannot be resolved has an errno of another kind.
    if (
        isinstance(deepest, OSError)
        and not isinstance(deepest, socket.gaierror | ssl.SSLError)
        and deepest.errno
    ):
        return os.strerror(deepest.errno).lower()
    said = getattr(deepest, "strerror", None) or str(deepest) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


def _cause(error: BaseException) -> BaseException | None:
    """Return what led to ``error``; the first of several addresses that were tried in vain."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    return error.__cause__ or error.__context__


def _message_in(content: bytes) -> str:
    """Return the message of an error body, ours or OpenAI's; empty when it is neither."""
    try:
        document = json.loads(content)
    except ValueError:
        return ""
    if isinstance(document, dict):
        inner = document.get("error")
        for message in (document.get("message"), inner.get("message") if isinstance(inner, dict) else inner):
            if isinstance(message, str) and message:
                return message[:_LONGEST_MESSAGE]
    return ""


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return 1.0
