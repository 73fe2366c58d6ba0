"""An extension is made with its settings; what does not work is one line naming the plugin."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gpustack.extensions import Catalogue, Registered
from gpustack.kit.errors import SettingsError
from gpustack.plugin import Extension, Host, NoSettings, PluginError

HOST = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))


class Keyed(BaseModel):
    key: str


class Plain(Extension[NoSettings]):
    name = "plain"
    settings_type = NoSettings


class Needy(Extension[Keyed]):
    name = "needy"
    settings_type = Keyed


class Broken(Extension[NoSettings]):
    name = "broken"
    settings_type = NoSettings

    def __init__(self, settings: NoSettings, host: Host) -> None:
        raise OSError("the licence file is missing")


def registered(cls: type[Any]) -> Registered[Any]:
    return Registered(cls=cls, plugin="acme", distribution="acme-dist", version="1")


def test_settings_default() -> None:
    assert Catalogue().make(registered(Plain), HOST).settings == NoSettings()


def test_settings_given() -> None:
    assert Catalogue(given={"key": "k", "other": "o"}).make(registered(Needy), HOST).settings.key == "k"


def test_a_setting_without_default_is_named() -> None:
    with pytest.raises(SettingsError, match=r"needy \(plugin acme\) needs settings that are not given: key"):
        Catalogue(given={}).make(registered(Needy), HOST)


def test_a_constructor_that_raises_is_one_line() -> None:
    with pytest.raises(
        PluginError, match="plugin acme: broken cannot be made: OSError: the licence file is missing"
    ):
        Catalogue().make(registered(Broken), HOST)
