"""Wheels that were imported for an environment and are kept, to make it again without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from gpustack.kit.errors import InvalidInput
from gpustack.worker.artifacts.errors import InstallError

#: What says which wheels there are, with their hashes; in an archive too.
MANIFEST = "manifest.json"


class Wheels:
    """The imported wheels of the environment ``name``, in a folder of their own below pipx's ``home``."""

    def __init__(self, home: Path, name: str) -> None:
        self.folder = home / "wheels" / name
        self._name = name

    def exists(self) -> bool:
        """Tell whether there are any."""
        return (self.folder / MANIFEST).is_file()

    def lock(self) -> list[str]:
        """Return the lines of their lock: versions and hashes."""
        return [f"{each['name']}=={each['version']} --hash=sha256:{each['sha256']}" for each in self._files()]

    def check(self) -> None:
        """Raise InstallError with one line when a file is missing or not what was imported."""
        for each in self._files():
            path = self.folder / each["file"]
            if not path.is_file():
                raise InstallError(f"{path} is gone; import the archive of {self._name} again", again=False)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != each["sha256"]:
                raise InstallError(
                    f"{path} was changed since it was imported (its hash is another); import the archive again",
                    again=False,
                )

    def forget(self) -> None:
        """Remove them; there need not be any."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[dict[str, Any]]:
        try:
            document = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            return [dict(each) for each in document["wheels"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"{self.folder / MANIFEST} cannot be read: {error}; import the archive again"
            ) from error
