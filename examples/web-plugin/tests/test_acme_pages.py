"""AcmePagesApp keeps the contract, and its page is whole."""

import logging
from pathlib import Path

from gpustack_acme_pages import AcmePagesApp

from gpustack.plugin import Host, NoSettings
from gpustack.testing import WebAppSuite


class TestContract(WebAppSuite):
    """What GPUStack expects of every web app."""

    extension = AcmePagesApp


def test_the_page_says_whose_it_is(tmp_path: Path) -> None:
    host = Host(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    page = AcmePagesApp(NoSettings(), host).files() / "index.html"
    assert "<title>Acme Pages</title>" in page.read_text(encoding="utf-8")
