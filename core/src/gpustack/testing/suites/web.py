"""The contract of web apps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpustack.plugin import Refused, WebApp
from gpustack.testing.suites.base import ExtensionSuite, error_line

#: What answers there already.
_TAKEN = (
    *("/v1", "/v1-openai", "/v2", "/auth", "/docs", "/redoc", "/openapi.json", "/_openapi"),
    *("/healthz", "/readyz", "/metrics", "/version"),
)


class WebAppSuite(ExtensionSuite[WebApp[Any]]):
    """Holds what :class:`gpustack.plugin.WebApp` promises."""

    kind = "web_apps"

    def test_its_path_can_be_one(self) -> None:
        """It begins with a slash and has none at its end, as in ``/ui``; ``/`` is all that is left."""
        path = self.extension.path
        assert path == "/" or re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", path), (
            f"path is {path!r}; give one such as '/ui'"
        )

    def test_its_path_is_not_the_apis(self) -> None:
        """Clients of the API must go on finding it."""
        path = f"{self.extension.path.rstrip('/')}/"
        taken = [each for each in _TAKEN if path.startswith(f"{each}/")]
        assert not taken, f"path {self.extension.path!r} is one of the API's: {taken[0] if taken else ''}"

    def test_its_files_are_there(self, made: WebApp[Any]) -> None:
        """``files`` is the absolute path of a folder with an ``index.html``, the same at every call."""
        folder = self._files(made)
        assert folder.is_absolute(), f"files returned {folder}; give an absolute path"
        assert folder.is_dir(), (
            f"files returned {folder}, which is no folder; raise Refused when it is missing"
        )
        index = folder / "index.html"
        assert index.is_file(), f"there is no {index}, which is what browsers get first"
        assert self._files(made) == folder, "files returned two folders"

    def test_no_file_leads_out_of_the_folder(self, made: WebApp[Any]) -> None:
        """Everybody may read what is in the folder; a link out of it would show them more."""
        folder = self._files(made).resolve()
        outside = [each for each in folder.rglob("*") if not each.resolve().is_relative_to(folder)]
        assert not outside, f"{outside[0]} leads out of the folder" if outside else ""

    def _files(self, made: WebApp[Any]) -> Path:
        try:
            folder: object = made.files()
        except Refused as error:
            pytest.fail(f"files refuses, so the app's files are missing here: {error}")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(f"files raised {error_line(error)}; raise Refused when files are missing")
        assert isinstance(folder, Path), f"files returned {folder!r}; return a pathlib.Path"
        return folder
