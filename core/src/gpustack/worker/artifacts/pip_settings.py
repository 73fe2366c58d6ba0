"""What the user has set for pip, and the same for uv: an index, folders of wheels, a proxy, certificates.

pip reads files and ``PIP_…``, uv its own files and ``UV_…``; neither reads the other's. pipx takes uv where it finds it.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Sections of pip's files that count for installing, the stronger last.
_SECTIONS = ("global", "install")
#: Settings of uv's that say where packages come from.
_UV_PLACES = (
    *("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"),
    *("UV_NO_INDEX", "UV_CONFIG_FILE"),
)
#: pip's setting, uv's variable, and what is between several values of it.
_NAMES = (
    ("index-url", "UV_DEFAULT_INDEX", ""),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("constraint", "UV_CONSTRAINT", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("timeout", "UV_HTTP_TIMEOUT", ""),
    ("default-timeout", "UV_HTTP_TIMEOUT", ""),
    ("cert", "SSL_CERT_FILE", ""),
    ("client-cert", "SSL_CLIENT_CERT", ""),
    ("cache-dir", "UV_CACHE_DIR", ""),
    ("keyring-provider", "UV_KEYRING_PROVIDER", ""),
)
_YES = frozenset({"1", "true", "yes", "on"})


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return pip's settings by their long names, as pip itself would read them; unreadable files say nothing."""
    found: dict[str, str] = {}
    for path in _files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
        for section in _SECTIONS:
            if parser.has_section(section):
                found |= {_long(name): value.strip() for name, value in parser.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[_long(name.removeprefix("PIP_"))] = value
    return found


def for_uv(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give uv what is set for pip; none where the user has told uv a place of its own."""
    if any(environ.get(name) for name in _UV_PLACES):
        return {}
    settings = pip_settings(environ)
    made = {
        variable: between.join(settings[name].split()) if between else settings[name]
        for name, variable, between in _NAMES
        if settings.get(name)
    }
    if "extra-index-url" in settings:
        # As pip does: of all indexes the best version, not the first index that has the name.
        made["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if settings.get("no-index", "").lower() in _YES:
        made["UV_NO_INDEX"] = "1"
    if settings.get("pre", "").lower() in _YES:
        made["UV_PRERELEASE"] = "allow"
    if proxy := settings.get("proxy"):
        made |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    made |= _builds(settings)
    return {name: value for name, value in made.items() if not environ.get(name)}


def for_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give pip what is set for uv alone, for a machine without uv."""
    settings = pip_settings(environ)
    if any(settings.get(name) for name in ("index-url", "extra-index-url", "find-links", "no-index")):
        return {}
    index = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL", "")
    more = f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}"
    made = {
        # uv lets an index have a name: name=https://…
        "PIP_INDEX_URL": _address(index),
        "PIP_EXTRA_INDEX_URL": " ".join(_address(each) for each in more.split()),
        "PIP_FIND_LINKS": " ".join(environ.get("UV_FIND_LINKS", "").split(",")),
        "PIP_NO_INDEX": "1" if environ.get("UV_NO_INDEX", "").lower() in _YES else "",
    }
    return {name: value for name, value in made.items() if value}


def _address(index: str) -> str:
    name, equals, address = index.partition("=")
    return address if equals and "/" not in name else index


def _builds(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what says whether wheels are built, or used, at all."""
    made: dict[str, str] = {}
    for name, everything, some in (
        ("only-binary", "UV_NO_BUILD", "UV_NO_BUILD_PACKAGE"),
        ("no-binary", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE"),
    ):
        names = settings.get(name, "").replace(",", " ").split()
        if ":all:" in names:
            made[everything] = "1"
        elif named := [each for each in names if each != ":none:"]:
            made[some] = " ".join(named)
    return made


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield where pip has its settings, the weaker first."""
    own = environ.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return  # that is how pip is told to read none
    dirs = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    yield from (Path(each, "pip", "pip.conf") for each in reversed(dirs.split(":")) if each)
    yield Path("/etc/pip.conf")
    if home := environ.get("HOME", ""):
        yield Path(home, ".pip", "pip.conf")
        yield Path(home, "Library", "Application Support", "pip", "pip.conf")
        yield Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config", "pip", "pip.conf")
    if appdata := environ.get("APPDATA"):
        yield Path(appdata, "pip", "pip.ini")
    if own:
        yield Path(own)


def _long(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")
