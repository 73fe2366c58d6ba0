"""Everything that is wrong is said in one go, each with where it came from; what only looks right is made right."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.settings.declared import Options
from gpustack.settings.load import read


def test_all_that_is_wrong_inside_one_option_is_said(options: Options) -> None:
    assert read({"system_reserved": '{"ram": "x", "foo": 3}'}, options).problems == (
        """--system-reserved '{"ram": "x", "foo": 3}': ram: give a number""",
        """--system-reserved '{"ram": "x", "foo": 3}': foo: there is no such key""",
    )


def test_a_file_is_named_by_what_named_it(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_CONFIG_FILE", "/nowhere/at/all")
    (line,) = read({}, options).problems
    assert line == "GPUSTACK_CONFIG_FILE /nowhere/at/all cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("typed", "as_browsers_write_it"),
    [
        ("https://example.com:443", "https://example.com"),
        ("http://Example.com:80/", "http://example.com"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://example.com:80", "https://example.com:80"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(
    typed: str, as_browsers_write_it: str, options: Options
) -> None:
    assert read({"allow_origins": [typed]}, options).checked().allow_origins == (as_browsers_write_it,)


def test_a_method_is_kept_as_requests_have_it(options: Options) -> None:
    assert read({"allow_methods": ["get", "Post"]}, options).checked().allow_methods == ("GET", "POST")


def test_a_token_has_no_spaces_wherever_it_stands(options: Options, tmp_path: Path) -> None:
    assert read({"token": "se cret"}, options).problems
    (tmp_path / "token").write_text("se cret")
    assert read({"token_file": str(tmp_path / "token")}, options).problems


def test_on_a_worker_what_is_for_a_server_is_said_to_do_nothing(options: Options, file: Path) -> None:
    file.write_text(
        "server_url: http://10.0.0.1\nenable_cors: true\nssl_keyfile: /k\nssl_certfile: /c\nport: 80\n"
    )
    loaded = read({"config_file": str(file)}, options)
    assert not loaded.problems
    (line,) = [line for line in loaded.warnings if "for a server" in line]
    assert "enable_cors in" in line
    assert "ssl_keyfile in" in line
