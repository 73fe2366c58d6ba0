"""Packages that a deployment wants beside its engine, in the environment that the engine runs from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

#: The variable of a model that names packages, as in ``a==1,b>=2``.
DEPS_VARIABLE = "GPUSTACK_BACKEND_DEPS"
#: Packages of one deployment, and characters of one.
MOST_PACKAGES = 50
_LONGEST = 512
#: A comma before these goes on with the versions of the package before it.
_BETWEEN = re.compile(r",(?!\s*(?:[<>=!~]|$))")


def normal_packages(packages: Iterable[str]) -> tuple[str, ...]:
    """Return requirements as one spelling, sorted, each once: equal ones make equal environments.

    Raises ValueError in one clause for what is no requirement of pip's, such as an option or a path.
    """
    found = {_normal(package) for package in packages}
    if len(found) > MOST_PACKAGES:
        raise ValueError(f"{len(found)} packages; a deployment names {MOST_PACKAGES} at most")
    return tuple(sorted(found))


def packages_of_variable(text: str) -> tuple[str, ...]:
    """Return the packages of ``GPUSTACK_BACKEND_DEPS``, such as ``a==1,b>=2,<3``. Raises ValueError."""
    return normal_packages(part for part in _BETWEEN.split(text) if part.strip(" ,"))


def all_packages(backend_packages: Iterable[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a model names in its field and in its variable. Raises ValueError."""
    return normal_packages((*backend_packages, *packages_of_variable(env.get(DEPS_VARIABLE, ""))))


def _normal(text: str) -> str:
    stripped = text.strip().strip(",").strip()
    if len(stripped) > _LONGEST or not stripped.isprintable():
        raise ValueError(f"{stripped[:40]!r} is no package; name one such as transformers==4.57.1")
    try:
        parsed = Requirement(stripped)
    except InvalidRequirement:
        raise ValueError(
            f"{stripped[:80]!r} is no package; name one such as transformers==4.57.1 or 'numpy>=2,<3'"
        ) from None
    if parsed.url is not None and not re.match(r"(git\+)?https?://", parsed.url):
        raise ValueError(
            f"{stripped[:80]!r} names a place that is not on every worker; use a https:// address"
        )
    # Packages are part of messages, logs and events, and told to all workers.
    if parsed.url is not None and "@" in re.split(r"[/?#]", parsed.url.partition("://")[2], maxsplit=1)[0]:
        raise ValueError(
            f"the address of {parsed.name} has a user or a password in it, which everybody would see; put them into the "
            ".netrc file of the user that runs the workers"
        )
    parsed.name = canonicalize_name(parsed.name)
    return str(parsed)
