"""From the flags of ``gpustack start`` to the supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from gpustack.kit.process import become
from gpustack.settings.load import load


def start(flags: Mapping[str, str]) -> NoReturn:
    """Check the settings, then become the supervisor.

    ``flags`` are the given options by name, as text. Raises SettingsError when something is wrong with them. The
    supervisor is a fresh interpreter, so that the memory of what reads settings is not kept for months.
    """
    settings = load(flags)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        pipe.write(settings.model_dump_json())
    become([sys.executable, "-P", "-m", "gpustack.app.supervisor", str(reader)], keep_fd=reader)
