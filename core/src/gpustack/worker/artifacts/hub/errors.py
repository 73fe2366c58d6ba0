"""What the hub's answers mean, in one line each: what is wrong, where, and what to do.

What waiting may mend is Unavailable or Throttled (:data:`PASSING`); everything else is final.
"""

from __future__ import annotations

import contextlib

import httpx

from gpustack.kit.errors import (
    Forbidden,
    GPUStackError,
    NotFound,
    Throttled,
    Unauthenticated,
    Unavailable,
)

PASSING = (Unavailable, Throttled)

_TOKEN = "--huggingface-token or HF_TOKEN of `gpustack start` on the worker"  # noqa: S105  # no password
_AGAIN = 5.0


class DownloadError(GPUStackError):
    """Files cannot be fetched. ``again`` tells whether another attempt may succeed without a change."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


def refusal(
    response: httpx.Response, *, endpoint: str, repo: str, revision: str, path: str, token: bool
) -> GPUStackError:
    """Return what an answer with a status of 400 or more means for ``path`` (may be empty) of ``repo``."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = response.headers.get("X-Error-Message", "")
    if status == 429:
        return Throttled(
            f"{endpoint} limits the rate of requests; a token raises the limit ({_TOKEN})"
            if not token
            else f"{endpoint} limits the rate of requests for this token",
            retry_after=_seconds(response),
        )
    if status >= 500 or status == 408:
        return Unavailable(f"{endpoint} answers {status} for {repo}", retry_after=_AGAIN)
    if code == "GatedRepo":
        return Forbidden(_gated(endpoint, repo, token=token))
    if status == 401 and "Invalid credentials" in said:
        return Unauthenticated(f"{endpoint} does not accept the token; give a valid one with {_TOKEN}")
    if code == "RevisionNotFound":
        return NotFound(f"{repo} has no branch, tag or commit {revision!r} at {endpoint}")
    if code == "EntryNotFound":
        return NotFound(f"{repo} has no file {path!r} at revision {revision}")
    if status in (401, 403, 404):
        return NotFound(_unknown(endpoint, repo, token=token))
    return GPUStackError(f"{endpoint} refuses {repo}: status {status}{', ' + said[:200] if said else ''}")


def unreachable(endpoint: str, error: Exception) -> Unavailable:
    """Return what a connection that fails, stalls or breaks off means."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
        why = "cannot be reached; check the network, the proxy variables, or HF_ENDPOINT"
        return Unavailable(f"{endpoint} {why} ({_short(error)})", retry_after=_AGAIN)
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"{endpoint} has stopped sending", retry_after=_AGAIN)
    return Unavailable(f"the connection to {endpoint} broke off ({_short(error)})", retry_after=_AGAIN)


def _gated(endpoint: str, repo: str, *, token: bool) -> str:
    if token:
        return (
            f"{repo} is gated, and the token's account has no access; accept the licence at {endpoint}/{repo} "
            "with that account, then deploy again"
        )
    return f"{repo} is gated: accept its licence at {endpoint}/{repo}, and give a token of that account with {_TOKEN}"


def _unknown(endpoint: str, repo: str, *, token: bool) -> str:
    what = f"{endpoint} has no repository {repo}, or it is private"
    if token:
        return f"{what} and the token's account may not see it; check the name"
    return f"{what}; check the name, or give a token with {_TOKEN}"


def _seconds(response: httpx.Response) -> float:
    with contextlib.suppress(ValueError):
        return min(3600.0, max(1.0, float(response.headers.get("Retry-After", ""))))
    return 30.0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
