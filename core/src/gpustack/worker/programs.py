"""Programs that the operator of a worker has put there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gpustack.plugin import Refused
from gpustack.worker.environment import DEVICES, clean_environment


def find_program(name: str, bin_dir: Path, *environments: Mapping[str, str]) -> str:
    """Return the absolute path of a program: as it is given, else from ``PATH``, else below ``bin_dir``.

    Of ``environments``, the engine's own, the last that has a ``PATH`` counts. Raises Refused with one line when the
    program is not there or may not be run. Asks the file system, which may block.
    """
    path = clean_environment(DEVICES).get("PATH", os.defpath)
    for each in environments:
        path = each.get("PATH", path)
    named = Path(name)
    if named.is_absolute():
        if named.is_file() and os.access(named, os.X_OK):
            return name
        if named.is_file():
            raise Refused(
                f"run_command: {name} may not be run on this worker; `chmod +x` allows it, if it is a program"
            )
        what = "is no file" if named.exists() else "does not exist"
        raise Refused(f"run_command: the program {name} {what} on this worker; put it there")
    if named.name != name:
        raise Refused(f"run_command: the program {name!r} is neither a name nor an absolute path")
    found = shutil.which(name, path=os.pathsep.join([path, str(bin_dir)]))
    if found is None:
        raise Refused(
            f"run_command: there is no program {name!r} on this worker, in its PATH ({path}) or in {bin_dir}; install it "
            "there or give its absolute path"
        )
    return str(Path(found).absolute())
