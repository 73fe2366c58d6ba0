"""What the settings say of clients reaches the HTTP layer of gateways and servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gpustack.app.sharing import limits_of
from gpustack.dataplane.http import HttpServer, Limits
from gpustack.settings.model import Settings


def test_without_a_word_they_are_the_usual_ones(tmp_path: Path) -> None:
    assert limits_of(Settings(data_dir=tmp_path).model_dump(mode="json")) == Limits()


def test_times_and_proxies_are_taken_over(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        trusted_proxies=("10.0.0.9", "fd00::/8"),
        gateway_header_timeout=1.5,
        gateway_body_timeout=2,
        gateway_keep_alive_timeout=300,
    )
    limits = limits_of(settings.model_dump(mode="json"))
    assert (limits.head_seconds, limits.body_seconds, limits.keep_alive_seconds) == (1.5, 2, 300)
    server = HttpServer(None, limits)  # type: ignore[arg-type]  # nobody asks
    assert server.proxies.trusts("10.0.0.9")
    assert server.proxies.trusts("fd00::1")
    assert not server.proxies.trusts("10.0.0.8")


@pytest.mark.parametrize("network", ["10.0.0.9/8", "proxy.example", "10.0.0.300", "", "*"])
def test_what_is_no_network_is_refused(tmp_path: Path, network: str) -> None:
    with pytest.raises(ValidationError, match=r"10\.0\.0\.0/24|empty|characters"):
        Settings(data_dir=tmp_path, trusted_proxies=(network,))


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), 90_000])
def test_a_time_has_to_be_a_sane_one(tmp_path: Path, seconds: float) -> None:
    for name in ("gateway_header_timeout", "gateway_body_timeout", "gateway_keep_alive_timeout"):
        with pytest.raises(ValidationError):
            Settings(data_dir=tmp_path, **{name: seconds})
