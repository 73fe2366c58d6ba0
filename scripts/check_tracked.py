"""Fails when the repository names a package registry or carries a lock file that does.

Where packages come from is the business of whoever installs them: the constraints in ``requirements/`` hold
names, versions and hashes, which are true on every mirror.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILES = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml", "package-lock.json"}
REGISTRIES = re.compile(
    rb"pypi\.org|pythonhosted\.org|pypi\.python\.org|registry\.npmjs\.org|registry\.yarnpkg\.com"
    rb"|index-url[ =]+.?http|https?://[^ \"]+/simple/?[\"' ]"
)
OPTIONS = re.compile(rb"^\s*(--index-url|--extra-index-url|--find-links|-i|-f)\b", re.MULTILINE)


def repository_files(root: Path = ROOT) -> list[Path]:
    """What git tracks, and what it would if all were added now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout
    return [path for name in listed.decode().split("\0") if name and (path := root / name).is_file()]


def findings(root: Path = ROOT) -> list[str]:
    """One line for each thing that should not be there."""
    found: list[str] = []
    for path in repository_files(root):
        name = path.relative_to(root)
        if path.name in LOCK_FILES:
            found.append(f"{name}: a lock file that holds registry addresses")
            continue
        content = path.read_bytes()
        for number, line in enumerate(content.splitlines(), start=1):
            if match := REGISTRIES.search(line):
                found.append(f"{name}:{number}: the registry address {match[0].decode()}")
        if name.parts[0] == "requirements" and (match := OPTIONS.search(content)):
            found.append(f"{name}: the option {match[1].decode()}")
    return found


def main() -> int:
    found = findings()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
