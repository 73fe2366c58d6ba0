"""What is set for pip holds for uv, and the other way round."""

from __future__ import annotations

import os
from pathlib import Path

from gpustack.worker.artifacts.pip_settings import for_pip, for_uv, pip_settings


def _global(name: str, value: str, *lines: str) -> str:
    return "\n".join(["[global]", f"{name} = {value}", *lines, ""])


def test_files_and_variables_count_as_pip_has_them(tmp_path: Path) -> None:
    home, given = tmp_path / "home", tmp_path / "given.conf"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(_global("index-url", "http://a", "timeout = 5"))
    given.write_text(_global("index_url", "http://b", "[install]", "find-links =", "    /x", "    /y"))
    environ = {
        "HOME": str(home),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "PIP_CONFIG_FILE": str(given),
        "PIP_PROXY": "http://p",
    }

    found = pip_settings(environ)

    assert (found["index-url"], found["timeout"], found["proxy"]) == ("http://b", "5", "http://p")
    assert found["find-links"].split() == ["/x", "/y"]
    assert pip_settings({**environ, "PIP_INDEX_URL": "http://c"})["index-url"] == "http://c"
    assert pip_settings({**environ, "PIP_CONFIG_FILE": os.devnull}).get("index-url") is None


def test_uv_gets_what_is_set_for_pip() -> None:
    environ = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://a",
        "PIP_EXTRA_INDEX_URL": "http://b http://c",
        "PIP_FIND_LINKS": "/x /y",
        "PIP_CERT": "/c.pem",
        "PIP_TRUSTED_HOST": "a",
        "PIP_PROXY": "http://p",
        "PIP_ONLY_BINARY": ":all:",
        "PIP_NO_BINARY": "one,two",
        "PIP_PRE": "true",
        "PIP_NO_INDEX": "0",
        "SSL_CERT_FILE": "/mine.pem",
    }

    assert for_uv(environ) == {
        "UV_DEFAULT_INDEX": "http://a",
        "UV_INDEX": "http://b http://c",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/x,/y",
        "UV_INSECURE_HOST": "a",
        "HTTP_PROXY": "http://p",
        "HTTPS_PROXY": "http://p",
        "UV_NO_BUILD": "1",
        "UV_NO_BINARY_PACKAGE": "one two",
        "UV_PRERELEASE": "allow",
    }


def test_what_is_set_for_uv_itself_is_left_alone() -> None:
    assert for_uv({"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://a", "UV_INDEX": "http://b"}) == {}


def test_pip_gets_what_is_set_for_uv_where_nothing_is_set_for_it() -> None:
    environ = {
        "PIP_CONFIG_FILE": os.devnull,
        "UV_DEFAULT_INDEX": "corp=https://a",
        "UV_INDEX": "https://b/?x=1",
        "UV_FIND_LINKS": "/x,/y",
    }

    assert for_pip(environ) == {
        "PIP_INDEX_URL": "https://a",
        "PIP_EXTRA_INDEX_URL": "https://b/?x=1",
        "PIP_FIND_LINKS": "/x /y",
    }
    assert for_pip({**environ, "PIP_INDEX_URL": "http://a"}) == {}
