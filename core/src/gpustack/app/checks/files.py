"""Files that the settings name."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator

from gpustack.app.checks.finding import Finding
from gpustack.kit.errors import SettingsError
from gpustack.settings.load import Loaded, holds_secret


def certificate(loaded: Loaded) -> Iterator[Finding]:
    """Check that key and certificate can be read and belong together."""
    keyfile, certfile = loaded.settings.ssl_keyfile, loaded.settings.ssl_certfile
    if keyfile is None or certfile is None or loaded.settings.server_url:
        return
    from gpustack.server.tls import Certificates

    try:
        Certificates(certfile, keyfile)
    except SettingsError as error:
        for line in error.message.splitlines():
            text = line
            for name in ("ssl_certfile", "ssl_keyfile"):
                text = text.replace(loaded.options[name].flag, loaded.origin(name))
            yield Finding(level="problem", options=("ssl_keyfile", "ssl_certfile"), text=text)


def readable_secrets(loaded: Loaded) -> Iterator[Finding]:
    """Warn of a file with secrets in it that other users of this machine can read."""
    path = loaded.settings.config_file
    secrets = [
        name
        for name, item in loaded.given.items()
        if item.kind == "file" and holds_secret(loaded.options[name], item.value)
    ]
    if path is None or not secrets or sys.platform == "win32":
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # it has been read: who removes it since then is not worth a word
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding(
            level="warning",
            options=("config_file",),
            text=f"{path} holds {', '.join(secrets)} and other users can read it (mode {mode:04o}); chmod 600 {path}",
        )
