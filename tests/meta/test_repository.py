"""What holds for the repository as a whole."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = sorted(
    path.parent
    for pattern in ("core", "gpustack_*", "plugins/*")
    for path in ROOT.glob(f"{pattern}/pyproject.toml")
)
PLUGINS = [member for member in MEMBERS if member.parent.name == "plugins"]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def requirement_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def pinned(name: str) -> set[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return {line.split("==")[0] for line in lines if "==" in line and not line.startswith(("#", " "))}


@pytest.fixture(params=MEMBERS, ids=lambda member: member.name)
def member(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_layers_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")

    answer = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_sees_of_the_core_only_the_public_room(plugin: Path) -> None:
    forbidden = re.compile(r"^\s*(?:from|import)\s+gpustack(?!\.plugin\b|_|\w)", re.MULTILINE)

    offenders = [path for path in plugin.glob("src/**/*.py") if forbidden.search(path.read_text())]

    assert not offenders


def test_no_registry_address_and_no_lock_file() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    answer = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_tracked.py"], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr


def test_all_members_are_seen() -> None:
    assert {"core", "gpustack_auth", "gpustack_backends", "gpustack_gateway"} <= {m.name for m in MEMBERS}


def test_a_member_is_typed(member: Path) -> None:
    packages = [path.parent for path in member.glob("src/*/__init__.py")]

    assert packages
    assert all((package / "py.typed").is_file() for package in packages)


def test_a_member_has_the_licence(member: Path) -> None:
    assert project(member)["license"] == "Apache-2.0"
    assert (member / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_a_members_dependencies_are_pinned(member: Path) -> None:
    if member in PLUGINS:
        pytest.skip("plugins are not part of the plain product")
    wanted = {requirement_name(each) for each in project(member).get("dependencies", [])}

    missing = {name for name in wanted if not name.startswith("gpustack-")} - pinned("runtime")

    assert not missing, f"run `make lock`: {missing}"


def test_ray_stays_an_extra() -> None:
    assert "ray" not in pinned("runtime")


def test_every_pin_has_hashes() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        pins = re.findall(r"^[\w.-]+==.*?(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL)
        assert pins
        assert all("--hash=sha256:" in pin for pin in pins), path.name


def test_one_version_of_a_package_in_all_constraints() -> None:
    versions: dict[tuple[str, str], set[str]] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        for name, version, marker in re.findall(
            r"^([\w.-]+)==([\w.]+)(.*?)\\$", path.read_text(), re.MULTILINE
        ):
            python = marker.strip() if "python_full_version" in marker else ""
            versions.setdefault((name, python), set()).add(version)

    assert not {key: found for key, found in versions.items() if len(found) > 1}


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        code = "\n".join([*re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`[^`\n]+`", text)])
        named = set(re.findall(r"(?:^|[\s`;&$])make ([a-z][a-z-]*)", code))
        assert named, f"{document} names no make target"
        assert named <= targets, f"{document} names {sorted(named - targets)}"
