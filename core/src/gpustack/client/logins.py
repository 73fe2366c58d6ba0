"""Saved logins: which servers this user has signed in to, and the API key for each.

They lie in ``logins.json`` in the user's configuration folder, readable by that user alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpustack.kit.errors import GPUStackError
from gpustack.kit.paths import config_home, write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One server. The key is left out of ``repr`` and so of logs."""

    url: str
    username: str
    key_id: int
    key: str

    def __repr__(self) -> str:
        return f"Login({self.url!r}, {self.username!r})"


class Logins:
    """The file of saved logins; read anew by each method, so that two commands do not undo each other's work."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or config_home() / "logins.json"

    def get(self, url: str) -> Login | None:
        """Return the login for ``url``, None when there is none."""
        return self._read()[1].get(_plain(url))

    def current(self) -> Login | None:
        """Return the login made last that is still there, None when there is none."""
        url, logins = self._read()
        return logins.get(url)

    def save(self, login: Login) -> None:
        """Add ``login`` and make it the current one."""
        _, logins = self._read()
        url = _plain(login.url)
        self._write(url, {**logins, url: login})

    def forget(self, url: str) -> None:
        """Remove the login for ``url``; the one made before it becomes current."""
        current, logins = self._read()
        logins.pop(_plain(url), None)
        self._write(current if current in logins else next(reversed(logins), ""), logins)

    def _read(self) -> tuple[str, dict[str, Login]]:
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            return str(document["current"]), {url: Login(**each) for url, each in document["logins"].items()}
        except (FileNotFoundError, NotADirectoryError):
            return "", {}
        except OSError as error:
            raise GPUStackError(f"{self.path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GPUStackError(f"{self.path} is damaged; remove it and use `gpustack login URL`") from error

    def _write(self, current: str, logins: dict[str, Login]) -> None:
        document = {"current": current, "logins": {url: asdict(each) for url, each in logins.items()}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(self.path, json.dumps(document, indent=2) + "\n", mode=0o600)
        except OSError as error:
            raise GPUStackError(f"{self.path} cannot be written: {error.strerror}") from error


def _plain(url: str) -> str:
    return url.strip().rstrip("/")
