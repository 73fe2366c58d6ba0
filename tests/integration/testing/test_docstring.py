"""The lesson at the top of the room works when pasted, and the suites run as ``gpustack plugins check`` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gpustack.testing
from gpustack.testing import SUITES

FLAGS = ("-q", "-p", "no:cacheprovider", "-c", os.devnull)


def run(file: Path) -> str:
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", *FLAGS, "--rootdir", str(file.parent), str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=file.parent)
    return done.stdout + done.stderr


def test_the_lesson_is_a_test_file_that_passes(tmp_path: Path) -> None:
    text = gpustack.testing.__doc__ or ""
    lesson = text[text.index("    from gpustack.plugin") : text.index("pytest runs it.")]
    file = tmp_path / "test_acme.py"
    file.write_text(textwrap.dedent(lesson))

    said = run(file)

    assert "failed" not in said, said
    assert " passed" in said


@pytest.mark.parametrize("kind", SUITES)
def test_a_suite_is_found_by_its_kind(kind: str) -> None:
    made = type("TestIt", (SUITES[kind],), {"extension": object})

    assert made.kind == kind
    assert [name for name in dir(made) if name.startswith("test_")]


def test_a_class_that_names_no_extension_is_told(tmp_path: Path) -> None:
    file = tmp_path / "test_acme.py"
    file.write_text("from gpustack.testing import GatewaySuite\nclass TestAcme(GatewaySuite):\n    pass\n")

    assert "set `extension = YourClass`" in run(file)


def test_settings_without_a_default_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "test_acme.py"
    file.write_text(
        textwrap.dedent("""
            from pydantic import BaseModel
            from gpustack.testing import GatewaySuite
            from gpustack.testing.fakes.gateway import FakeGateway

            class Settings(BaseModel):
                acme_url: str

            class Acme(FakeGateway):
                settings_type = Settings

            class TestAcme(GatewaySuite):
                extension = Acme

            class TestGiven(GatewaySuite):
                extension = Acme
                given = {"acme_url": "http://127.0.0.1:1"}
        """)
    )

    said = run(file)

    assert "cannot be made with its default settings (acme_url)" in said
    assert "TestGiven" not in said


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = gpustack.testing.Nothing
