"""What of other settings is applied to what runs, and what takes a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from gpustack.app.reload import Change, change
from gpustack.app.start import described
from gpustack.extensions import load_catalogue
from gpustack.plugin import Option
from gpustack.settings.declared import Options
from gpustack.settings.load import read
from gpustack.settings.shown import HIDDEN
from support.settings import a_plugin

TLS = {"ssl_certfile": "/srv/certificate", "ssl_keyfile": "/srv/key"}


def of(options: Options, **flags: str) -> dict[str, Any]:
    return described(read(flags, options))


def row(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in settings["effective"] if each["name"] == name)


def changed(options: Options, before: dict[str, str], after: dict[str, str]) -> Change:
    return change(of(options, **before), of(options, **after))


def test_nothing_has_changed(options: Options) -> None:
    flags = {"port": "9080", "allow_methods": "GET", "token": "very-secret", **TLS}
    present = of(options, **flags)
    done = change(present, of(options, **flags))
    assert (done.applied, done.needs_restart) == ((), ())
    assert done.settings == present


def test_a_default_that_is_written_down_now_is_no_change(options: Options) -> None:
    written = {each.name: each.default_shown for each in options.values() if each.default_shown}
    for option in options.values():
        if option.option.default_text:
            written.pop(option.name, None)
    assert "gateway_concurrency" in written
    done = changed(options, {}, written)
    assert (done.applied, done.needs_restart) == ((), ())


#: What the command's help and its documentation say is applied.
APPLIED = {
    "debug": "true",
    "enable_cors": "true",
    "allow_credentials": "true",
    "allow_origins": "https://a.example",
    "allow_methods": "PUT",
    "allow_headers": "X-One",
    "disable_update_check": "true",
    "update_check_url": "http://a.example",
    "huggingface_token": "very-secret",
}


def test_some_are_applied(options: Options) -> None:
    done = changed(options, {}, APPLIED)
    assert set(done.applied) == set(APPLIED)
    assert done.needs_restart == ()
    assert done.settings == of(options, **APPLIED)


def test_all_that_say_so_are_tried_here(options: Options) -> None:
    assert {option.name for option in options.values() if option.reload} == {*APPLIED, *TLS}


def test_the_others_need_a_restart_and_stay_as_they_were(options: Options) -> None:
    before = {"port": "1001", "worker_name": "one", "debug": "false"}
    present = of(options, **before)
    new = of(options, port="1002", worker_name="two", debug="true")
    done = change(present, new)
    assert (done.applied, done.needs_restart) == (("debug",), ("port", "worker_name"))
    assert done.settings == {**present, "debug": True, "effective": done.settings["effective"]}
    assert row(done.settings, "port")["value"] == 1001
    assert row(done.settings, "debug")["value"] is True
    # Said again until there is a restart, or the file is as it was.
    assert change(done.settings, new).needs_restart == ("port", "worker_name")
    back = change(done.settings, of(options, **{**before, "debug": "true"}))
    assert (back.applied, back.needs_restart) == ((), ())


def test_another_certificate_is_applied(options: Options) -> None:
    done = changed(options, TLS, {**TLS, "ssl_certfile": "/srv/other"})
    assert (done.applied, done.needs_restart) == (("ssl_certfile",), ())
    assert done.settings["ssl_certfile"] == "/srv/other"


def test_switching_tls_on_or_off_needs_a_restart(options: Options) -> None:
    assert set(changed(options, {}, TLS).needs_restart) == set(TLS)
    off = changed(options, TLS, {"debug": "true"})
    assert off.applied == ("debug",)
    assert set(off.needs_restart) == set(TLS)
    assert off.settings["ssl_certfile"] == "/srv/certificate"


def test_a_secret_that_changed_is_named_and_not_shown(options: Options) -> None:
    done = changed(options, {"token": "very-secret-1"}, {"token": "very-secret-2"})
    assert done.needs_restart == ("token",)
    assert done.settings["token"] == "very-secret-1"
    assert row(done.settings, "token")["value"] == HIDDEN


def test_where_a_value_stands_follows_also_when_it_stays(options: Options, file: Path) -> None:
    file.write_text("worker_port: 1002\nport: 1001\n")
    flags = {"config_file": str(file)}
    present = of(options, **flags)
    file.write_text("# a new line\nworker_port: 1002\nport: 1003\ntls_port: 443\n")
    done = change(present, of(options, **flags))
    assert done.needs_restart == ("port",)
    assert row(done.settings, "worker_port")["origin"] == f"worker_port in {file}, line 2"
    assert row(done.settings, "tls_port")["origin"] == f"tls_port in {file}, line 4"
    # This one is still what it was made of.
    assert row(done.settings, "port")["origin"] == f"port in {file}, line 2"


class AcmeSettings(BaseModel):
    acme_fast: bool = False
    #: Nobody tells an extension of a new value, whatever it says of itself.
    acme_key: Annotated[str, Option(secret=True, reload=True)] = ""


def test_what_a_plugin_is_given_needs_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    options = load_catalogue([a_plugin(monkeypatch, "acme", AcmeSettings)]).options
    present = of(options, acme_key="very-secret-1")
    done = change(present, of(options, acme_key="very-secret-2", acme_fast="yes"))
    assert (done.applied, done.needs_restart) == ((), ("acme_fast", "acme_key"))
    assert done.settings["plugins"] == present["plugins"] == {"acme_key": "very-secret-1"}
    assert not row(done.settings, "acme_key")["reload"]


def test_an_option_that_came_with_an_update_needs_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    present = of(load_catalogue([]).options)
    options = load_catalogue([a_plugin(monkeypatch, "acme", AcmeSettings)]).options
    assert change(present, of(options)).needs_restart == ()
    done = change(present, of(options, acme_fast="yes"))
    assert done.needs_restart == ("acme_fast",)
