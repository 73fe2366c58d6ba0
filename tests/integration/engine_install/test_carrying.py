"""Engines that are carried to a machine without a network, and archives that are not what they should be."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from gpustack.worker.artifacts.archive import export_engine, import_engine, read_manifest
from gpustack.worker.artifacts.recipe import Recipe
from support.packages import Index, a_wheel, an_engine

Maker = Callable[..., ArtifactInstaller]
RECIPE = Recipe(backend="acme", package=an_engine(), extras=("helper>=2",))


def quiet(_: str) -> None:
    pass


def says(command: Path) -> str:
    return subprocess.run([command], capture_output=True, text=True, check=True, timeout=30).stdout


def rewritten(file: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write ``target`` as ``file`` with its members changed."""
    with tarfile.open(file) as archive:
        members = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(target, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target


def listed(members: dict[str, bytes], **changes: Any) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()


@pytest.fixture
def elsewhere(tmp_path: Path, an_installer: Maker) -> ArtifactInstaller:
    """An installer of a machine on which nothing is installed and no index answers."""
    installer = an_installer(
        "elsewhere", environ={"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    )
    installer.bin_dir = tmp_path / "bin elsewhere"
    installer.journal._bin_dir = installer.bin_dir
    return installer


async def exported(index: Index, installer: ArtifactInstaller, file: Path) -> Path:
    index.add("acme-engine", "1.0", command="acme", requires=("dep",))
    index.add("dep", "1.5")
    index.add("helper", "2.5")
    manifest = await export_engine(installer, RECIPE, file, quiet)
    assert [(each.name, each.version) for each in manifest.wheels] == [
        ("acme-engine", "1.0"),
        ("dep", "1.5"),
        ("helper", "2.5"),
    ]
    return file


@pytest.mark.slow
async def test_an_engine_is_carried_to_a_machine_without_a_network(
    index: Index, an_installer: Maker, elsewhere: ArtifactInstaller, tmp_path: Path
) -> None:
    file = await exported(index, an_installer(), tmp_path / "acme.tar")
    asked = len(index.asked)

    command = await import_engine(elsewhere, RECIPE, file, quiet)

    assert says(command) == "acme-engine 1.0\n"
    assert command.parent == elsewhere.bin_dir
    assert len(index.asked) == asked

    # What breaks is made anew from the same wheels, and from no others.
    file.unlink()
    command.with_name(f"{command.name}.json").unlink()
    (command.resolve().parent / "python").unlink()
    assert says(await elsewhere.ensure("acme", RECIPE.package, extras=RECIPE.extras)) == "acme-engine 1.0\n"

    # A file that was changed since then is told.
    wheel = a_wheel(elsewhere.home / "wheels" / RECIPE.name, "helper", "2.5", body="print('evil')")
    command.with_name(f"{command.name}.json").unlink()
    command.unlink()
    with pytest.raises(InstallError, match="was changed since it was imported") as caught:
        await elsewhere.ensure("acme", RECIPE.package, extras=RECIPE.extras)
    assert str(wheel) in str(caught.value)

    assert await elsewhere.remove("acme", RECIPE.package, extras=RECIPE.extras)
    assert not wheel.exists()


@pytest.mark.slow
async def test_archives_that_are_refused(
    index: Index, an_installer: Maker, elsewhere: ArtifactInstaller, tmp_path: Path
) -> None:
    file = await exported(index, an_installer(), tmp_path / "acme.tar")
    helper = "helper-2.5-py3-none-any.whl"
    evil = a_wheel(tmp_path / "evil", "helper", "2.5", body="print('evil')").read_bytes()
    with tarfile.open(file) as archive:
        manifest = json.loads(archive.extractfile("manifest.json").read())  # type: ignore[union-attr]
    wrong = [
        (lambda m: listed(m, python="3.9"), "with Python 3.9; here is"),
        (lambda m: listed(m, system="windows"), "was exported on windows"),
        (lambda m: listed(m, machine="riscv64"), "riscv64 with Python"),
        (lambda m: m.update({helper: evil}), f"was changed: {helper} is not what was exported"),
        (lambda m: m.pop(helper), f"lacks {helper}; it is not whole"),
        (lambda m: m.update({"../../x.whl": evil}), "holds '../../x.whl', which its list does not have"),
        (
            lambda m: listed(m, wheels=[*manifest["wheels"], {**manifest["wheels"][0], "file": "../x.whl"}]),
            "lists '../x.whl', which is no wheel's name",
        ),
        (lambda m: listed(m, format=7), "was written by another version of GPUStack"),
        (lambda m: listed(m, wheels=7), "its list of wheels cannot be read"),
        (lambda m: m.pop("manifest.json"), "it is no archive of `gpustack backends export`"),
        (
            lambda m: listed(
                m,
                wheels=[
                    {**each, "file": each["file"].replace("any", "win_arm64")} for each in manifest["wheels"]
                ],
            ),
            "which does not run on this machine",
        ),
    ]
    for number, (change, said) in enumerate(wrong):
        changed = rewritten(file, tmp_path / f"{number}.tar", change)
        with pytest.raises(GPUStackError) as caught:
            await import_engine(elsewhere, RECIPE, changed, quiet)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "no archive").write_bytes(b"x" * 5000)
    (tmp_path / "half").write_bytes(file.read_bytes()[:-20_000])
    for name in ("no archive", "half", "not there"):
        with pytest.raises(InvalidInput):
            await import_engine(elsewhere, RECIPE, tmp_path / name, quiet)

    assert elsewhere.environments() == []
    assert not (elsewhere.home / "wheels" / RECIPE.name).exists()
    assert list((elsewhere.home / "wheels").glob(".import-*")) == []


async def test_a_place_that_cannot_be_written_is_told_first(an_installer: Maker, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(GPUStackError, match="cannot be written: there is no folder"):
        await export_engine(an_installer(), RECIPE, tmp_path / "nowhere" / "acme.tar", said.append)
    assert said == []


@pytest.mark.parametrize(
    "manifest",
    [
        "[" * 100_000,
        "7",
        {"packages": 7},
        {"packages": None},
        {"packages": [1]},
        {"backend": 7},
        {"version": None},
        {"python": ["3"]},
        {"wheels": [7]},
        {"wheels": [{"name": 1, "version": "1", "file": "a-1-py3-none-any.whl", "sha256": "", "size": 1}]},
        None,
    ],
)
def test_a_list_that_makes_no_sense_is_one_line(tmp_path: Path, manifest: Any) -> None:
    sound = {"backend": "acme", "version": "1", "packages": [], "wheels": [], "format": 1}
    sound |= {"python": "3", "system": "linux", "machine": "x"}
    content = json.dumps(sound | manifest) if isinstance(manifest, dict) else manifest or ""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        if manifest is None:
            member.type, member.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(member, io.BytesIO(content.encode()))
    with pytest.raises(InvalidInput) as caught:
        read_manifest(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
async def test_what_gpustack_supplies_is_not_in_an_archive(
    index: Index, an_installer: Maker, elsewhere: ArtifactInstaller, tmp_path: Path
) -> None:
    """The launcher comes from the plugin of each machine; an imported engine is exported again without an index."""
    index.add("dep", "1.5")
    wheel = a_wheel(tmp_path / "ours", "acme-engine", "1.0", command="acme", requires=("dep",))
    package = replace(an_engine(), wheel=wheel.read_bytes(), wheel_name=wheel.name)
    recipe = Recipe(backend="acme", package=package)

    first = await export_engine(an_installer(), recipe, tmp_path / "a.tar", quiet)
    await import_engine(elsewhere, recipe, tmp_path / "a.tar", quiet)
    second = await export_engine(elsewhere, recipe, tmp_path / "b.tar", quiet)

    assert [each.name for each in first.wheels] == ["dep"]
    assert second.wheels == first.wheels
