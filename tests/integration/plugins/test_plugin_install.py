"""`gpustack plugins install`: what it refuses, what it says, and what it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli import plugin_environment
from gpustack.cli.plugin_environment import Installer, own
from gpustack.cli.plugin_said import explained
from gpustack.cli.plugin_wanted import Wanted, canonical, wanted
from gpustack.kit.errors import Conflict, GPUStackError

Cli = Any

GOOD = "from gpustack.plugin import hookimpl\n\n@hookimpl\ndef register_web_apps():\n    return []\n"
ENDER = "import os; os._exit(0)"


# What is GPUStack's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpustack-backends", "Gpustack_Core", "click"])
@pytest.mark.parametrize("form", ["{}", "./{}", "./{}-1.0.tar.gz", "./{}-1.0-py3-none-any.whl"])
def test_nothing_takes_the_name_of_what_gpustack_is_made_of(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile
    import zipfile

    monkeypatch.chdir(tmp_path)
    what = form.format(name)
    if what.endswith(".gz"):
        tarfile.open(what, "w:gz").close()
    elif what.endswith(".whl"):
        what = what.replace("gpustack-", "gpustack_")
        zipfile.ZipFile(what, "w").close()
    elif "/" in what:
        Path(name).mkdir()
        Path(name, "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    with pytest.raises(
        Conflict, match=f"^{canonical(name)} is the name of a part of GPUStack, or of what it needs"
    ):
        Installer(name="pip", command=("/nowhere/pip",)).install(wanted(what))


def _installer(folder: Path, name: str, dry: str) -> Installer:
    """Return an installer whose dry run does ``dry``, and which writes down that it installed."""
    program = folder / "installer"
    program.write_text(f'#!/bin/sh\ncase "$*" in *--dry-run*) {dry};; *) touch {folder}/installed;; esac\n')
    program.chmod(0o755)
    return Installer(name=name, command=(str(program),))


@pytest.mark.parametrize("name", ["pip", "uv"])
def test_nothing_that_comes_along_replaces_what_gpustack_needs(name: str, tmp_path: Path) -> None:
    report = json.dumps({"install": [{"metadata": {"name": each}} for each in ("acme", "Click")]})
    (tmp_path / "report").write_text(report)
    said = " - click==8.1.7\n + acme==1.0\n ~ click @ file:///tmp/click\n"
    (tmp_path / "said").write_text(said)
    copy = 'while [ "$1" != --report ]; do shift; done; cp ' + f'{tmp_path}/report "$2"'
    by = _installer(tmp_path, name, copy if name == "pip" else f"cat {tmp_path}/said >&2")
    line = (
        f"^acme would replace click {own()['click']}, which GPUStack needs as it is; nothing was installed$"
    )
    with pytest.raises(Conflict, match=line):
        by.install(wanted("acme"))
    assert not (tmp_path / "installed").exists()


def test_what_comes_is_known(tmp_path: Path) -> None:
    by = _installer(tmp_path, "uv", "echo ' + Acme_One==1.0'; echo ' - acme.two==1'; echo ' + acme.two==2'")
    assert by.install(wanted("acme-one")) == {"acme-one", "acme-two"}
    assert (tmp_path / "installed").exists()


# What went wrong ---------------------------------------------------------------------------------------------

PIP_CONFLICT = """\
INFO: pip is looking at multiple versions of acme to determine which version is compatible.
ERROR: Cannot install acme==1.0 because these package versions have conflicting dependencies.

The conflict is caused by:
    acme 1.0 depends on click<8
    The user requested (constraint) click==8.5.1

To fix this you could try to:
1. loosen the range of package versions you've specified

ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""
UV_CONFLICT = """\
Using Python 3.11.7 environment at: e1
error: No solution found when resolving dependencies
  cause: Because acme==1.0 depends on click<8 and click==8.5.1, we can conclude that acme==1.0 cannot be used.
         And because only acme==1.0 is available and you require acme, we can conclude that your requirements are unsatisfiable.

hint: something else
"""
UV_CONFLICT_BEFORE = UV_CONFLICT.replace("error: No", "  × No").replace("  cause: Because", "  ╰─▶ Because")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (PIP_CONFLICT, "there is a conflict: acme 1.0 depends on click<8; GPUStack has click==8.5.1"),
        (UV_CONFLICT, "there is a conflict: Because acme==1.0 depends on click<8 and click==8.5.1, we can"),
        (
            UV_CONFLICT_BEFORE,
            "there is a conflict: Because acme==1.0 depends on click<8 and click==8.5.1, we can",
        ),
        ("ERROR: No matching distribution found for acme", "the package index has no acme for this machine"),
    ],
)
def test_a_failure_is_explained_in_a_line(said: str, line: str) -> None:
    told = explained(said)
    assert told.startswith(line)
    assert "\n" not in told
    assert "hint" not in told


# What is left ------------------------------------------------------------------------------------------------


@dataclass
class InAFolder:
    """An installer that puts plugins into a folder, by their modules, and takes them out again."""

    folder: Path
    modules: dict[str, str]
    name: str = "pip"
    removed: list[str] = field(default_factory=list)

    def install(self, what: Wanted) -> set[str]:
        for name, module in self.modules.items():
            put(self.folder, name, module)
        return set(self.modules)

    def remove(self, *names: str) -> None:
        self.removed += names
        for name in names:
            (self.folder / f"{name}-1.0.dist-info/METADATA").unlink()
            (self.folder / f"{name}-1.0.dist-info/entry_points.txt").unlink()
            (self.folder / f"{name}-1.0.dist-info").rmdir()


def put(folder: Path, name: str, module: str) -> None:
    """Install the distribution ``name`` with a plugin of that name, or without one when it has no module."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gpustack]\n{name} = put_{name}\n" if module else "")
    (folder / f"put_{name}.py").write_text(module)


@pytest.fixture
def install(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[str]]]:
    """``install(name=module, …)`` installs these; returns how the command ended, and what was removed again."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def do(**modules: str) -> tuple[Any, list[str]]:
        by = InAFolder(folder, modules)
        monkeypatch.setattr(plugin_environment, "installer", lambda: by)
        return cli("plugins", "install", next(iter(modules))), by.removed

    return do


def test_what_brings_no_plugin_goes_again(install: Callable[..., tuple[Any, list[str]]]) -> None:
    ended, removed = install(library="", other="")
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        "Error: library brings no plugin: it has no entry point of the group gpustack; "
        "library, other were removed again"
    )
    assert removed == ["library", "other"]


def test_one_that_ends_all_processes_goes_again(install: Callable[..., tuple[Any, list[str]]]) -> None:
    ended, removed = install(ender=ENDER)
    assert (ended.status, ended.out, removed) == (1, "", ["ender"])
    assert ended.err.splitlines()[-1] == (
        "Error: plugin ender (ender 1.0) cannot be loaded: a process that loads it ends with status 0: it said nothing; "
        "ender was removed again"
    )


def test_one_that_was_there_is_to_blame_for_itself(
    install: Callable[..., tuple[Any, list[str]]], tmp_path: Path
) -> None:
    put(tmp_path / "site", "ender", ENDER)
    ended, removed = install(good=GOOD)
    assert (ended.status, removed) == (1, [])
    assert ended.out == "Installed plugin good (good 1.0): works.\n"
    last = ended.err.splitlines()[-1]
    assert last.startswith("Error: plugin ender (ender 1.0) cannot be loaded: a process that loads it ends")
    assert "it was here before" in last
    assert "`gpustack plugins remove ender`" in last
    assert "good" not in last


def test_one_that_only_fails_stays(install: Callable[..., tuple[Any, list[str]]]) -> None:
    ended, removed = install(bad="import nowhere_at_all", good=GOOD)
    assert (ended.status, removed) == (1, [])
    assert "Installed plugin good (good 1.0): works." in ended.out
    assert "plugin bad (bad 1.0) does not work: ModuleNotFoundError" in ended.err
    assert "stays until `gpustack plugins remove bad`" in ended.err


def test_an_installer_that_fails_changes_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by = _installer(tmp_path, "pip", "echo 'ERROR: it is broken'; exit 1")
    monkeypatch.setattr(plugin_environment, "installer", lambda: by)
    ended = cli("plugins", "install", "acme")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == "Error: acme cannot be installed: pip says: it is broken"
    assert not (tmp_path / "installed").exists()
    with pytest.raises(GPUStackError):
        by.install(wanted("acme"))
