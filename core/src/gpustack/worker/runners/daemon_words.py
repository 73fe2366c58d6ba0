"""What container engines and registries say when something goes wrong, told to people: one line, and what to do. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST = 300


@dataclass(frozen=True, slots=True)
class Told:
    """One line for people. ``again``: another attempt may succeed without a change."""

    line: str
    again: bool


def pull_trouble(said: str, image: str, *, engine: str, root: str = "") -> Told:
    """Return what is wrong when ``image`` cannot be fetched, given what the container engine ``said``."""
    text = said.lower()
    registry = image.partition("/")[0]
    what = f"the image {image} cannot be fetched"
    if "no space left on device" in text:
        place = f" at {root}" if root else ""
        return Told(f"{what}: no space is left where {engine} keeps images{place}; make room there", True)
    if "server gave http response to https client" in text:
        return Told(
            f"{what}: {registry} speaks plain HTTP, which {engine} does not use; serve it with TLS, or list it under "
            "insecure registries in the engine's configuration",
            True,
        )
    if "x509" in text or "certificate" in text:
        return Told(
            f"{what}: {engine} does not trust the certificate of {registry}; install its authority for the engine",
            True,
        )
    if "toomanyrequests" in text or "too many requests" in text or "rate limit" in text:
        return Told(f"{what}: {registry} allows no more pulls for now; log in there, or wait", True)
    if "no matching manifest" in text or "no image found in image index" in text:
        return Told(f"{what}: it is not made for this machine's system and processor", False)
    # A registry that hides what one may not see says both at once.
    if "pull access denied" in text or "denied: requested access" in text:
        return Told(
            f"{what}: {registry} has no such image, or it wants a login; check the name, or run `docker login "
            f"{registry}` as the user that runs the worker",
            False,
        )
    if re.search(r"unauthorized|authentication required|no basic auth|access denied|\b401\b|\b403\b", text):
        return Told(
            f"{what}: {registry} wants a login; run `docker login {registry}` as the user that runs the worker",
            False,
        )
    if "not found" in text or "manifest unknown" in text or "name unknown" in text:
        return Told(f"{what}: {registry} has no such image or tag; check the name", False)
    if "invalid reference format" in text or "could not parse" in text:
        return Told(f"{what}: that is no name of an image", False)
    if _AWAY.search(text):
        return Told(f"{what}: {registry} cannot be reached ({_last(said)}); it is tried again", True)
    return Told(f"{what}: {short(said)}", True)


_AWAY = re.compile(
    r"connection refused|no such host|i/o timeout|timeout|deadline exceeded|unreachable|connection reset|\beof\b|"
    r"no route to host|temporary failure|broken pipe|server misbehaving|\b50[0234]\b|bad gateway|unavailable"
)


def start_trouble(said: str, image: str, *, program: str, engine: str) -> Told:
    """Return what is wrong when a container of ``image`` cannot be made or started as ``program``."""
    text = said.lower()
    what = f"the image {image} cannot be started"
    if found := re.search(r'exec: "([^"]+)": [^\n]*?(?:not found|no such file)', said):
        return Told(
            f"{what}: it has no program {found[1]}; name another image, or the program by run_command or entrypoint",
            False,
        )
    if re.search(
        r"executable file .{0,200}not found|no such file or directory.{0,40}oci|oci.{0,40}not found", text
    ):
        return Told(
            f"{what}: it has no program {program}; name another image, or the program by run_command or entrypoint",
            False,
        )
    if "no command specified" in text:
        return Told(
            f"{what}: it says no program of its own; name one by run_command or entrypoint",
            False,
        )
    if "exec format error" in text:
        return Told(f"{what}: its programs are for another processor than this machine's", False)
    if re.search(r'exec: "[^"]+": [^\n]*permission denied', text):
        return Told(f"{what}: its program {program} may not be run by this user", False)
    if (
        "could not select device driver" in text
        or "nvidia-container-cli" in text
        or "unresolvable cdi" in text
    ):
        return Told(
            f"{what} with GPUs: {engine} cannot give them to containers ({_last(said)}); install the vendor's container "
            "toolkit and restart the engine",
            True,
        )
    if "no space left on device" in text:
        return Told(f"{what}: no space is left where {engine} keeps containers; make room there", True)
    if "no such image" in text:
        return Told(f"{what}: it was removed from this machine meanwhile; it is fetched again", True)
    return Told(f"{what}: {short(said)}", True)


def short(said: str) -> str:
    """Return what was ``said`` as one line of limited length."""
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _last(said: str) -> str:
    """Return the end of a chain of causes, which is what happened."""
    line = " ".join(said.split()).rstrip(". ")
    parts = [part for part in line.split(": ") if part]
    return short(": ".join(parts[-2:]) if len(parts) > 1 else line)
