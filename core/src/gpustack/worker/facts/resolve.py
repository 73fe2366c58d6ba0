"""From a path that a user gave to the facts of the model there."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.kit.threads import StillHangingError, call_aside
from gpustack.plugin import ModelFacts
from gpustack.worker.facts.gguf import MAGIC
from gpustack.worker.facts.gguf_model import part_of, read_gguf
from gpustack.worker.facts.hf_config import is_hf_dir, read_hf_dir
from gpustack.worker.facts.reader import Opener, open_local

#: Files of a directory that are counted; an engine's model has far fewer.
_MOST_FILES = 10_000
_READS = "GPUStack reads GGUF files and Hugging Face directories"


def read_facts(path: Path | str, opener: Opener = open_local) -> ModelFacts:
    """Return the facts of the model at ``path``, a file or a directory; ``opener`` opens its files of weights.

    Reads headers only, but may block as long as the file system does. Raises InvalidInput with one line.
    """
    try:
        return _read(Path(os.path.normpath(path)), opener)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise InvalidInput(os_trouble(where, error)) from error
    except ValueError as error:
        raise InvalidInput(f"{str(path)!r} is not a path") from error


async def read_facts_within(path: Path | str, *, seconds: float = 30.0) -> ModelFacts:
    """Do :func:`read_facts` in a thread; raise Unavailable when it takes longer than ``seconds``.

    The thread of a stalled file system cannot be ended. It does not keep the process, and while several hang at
    one path, no more are started there.
    """
    try:
        return await call_aside(f"facts of {path}", lambda: read_facts(path), timeout=seconds)
    except (TimeoutError, StillHangingError):
        raise Unavailable(
            f"{path} could not be read within {seconds:.0f} s; is it on a network file system that has stalled?",
            retry_after=seconds,
        ) from None


async def read_sizes_within(path: Path | str, *, seconds: float = 30.0) -> ModelFacts:
    """Return what is known of files that are no model to us: their sizes. Raises as :func:`read_facts_within`."""

    def read() -> ModelFacts:
        where = os.path.normpath(path)
        try:
            return ModelFacts(format="unknown", path=where, weight_bytes=_size(Path(where)))
        except OSError as error:
            raise InvalidInput(os_trouble(where, error)) from error
        except ValueError as error:
            raise InvalidInput(f"{str(path)!r} is not a path") from error

    try:
        return await call_aside(f"sizes of {path}", read, timeout=seconds)
    except (TimeoutError, StillHangingError):
        raise Unavailable(f"{path} could not be read within {seconds:.0f} s", retry_after=seconds) from None


def _size(path: Path) -> int:
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        return info.st_size
    files = itertools.islice((file for file in path.rglob("*") if file.is_file()), _MOST_FILES)
    return sum(file.stat().st_size for file in files)


def os_trouble(path: Path | str, error: OSError) -> str:
    """Return in a line why ``path`` could not be read."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist on this worker; give the path as the worker sees it"
    if isinstance(error, PermissionError):
        return f"{path} may not be read by this worker; give its user the right to read it"
    return f"{path} cannot be read: {error.strerror or error}"


def _read(path: Path, opener: Opener) -> ModelFacts:
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        return _read_directory(path, opener)
    if not stat.S_ISREG(info.st_mode):
        raise InvalidInput(f"{path} is neither a file nor a directory; {_READS}")
    if info.st_size == 0:
        raise InvalidInput(f"{path} is empty; copy or download it again")
    return _read_file(path, opener)


def _read_file(path: Path, opener: Opener) -> ModelFacts:
    with opener(path) as file:
        start = file.read(16)
    if start.startswith(MAGIC):
        return read_gguf(path, opener)
    if path.suffix == ".safetensors" or path.name.endswith((".safetensors.index.json", "config.json")):
        if is_hf_dir(path.parent):
            return read_hf_dir(path.parent, opener)
        raise InvalidInput(f"{path} has no config.json beside it; name a whole Hugging Face directory")
    raise InvalidInput(f"{path} is not a model file: it starts with {_shown(start)}; {_READS}")


def _shown(start: bytes) -> str:
    text = start.decode("ascii", "replace")
    if text.isprintable() and "�" not in text:
        return repr(text)
    return "bytes " + start[:8].hex(" ")


def _read_directory(folder: Path, opener: Opener) -> ModelFacts:
    candidates = _gguf_candidates(folder)
    hf = is_hf_dir(folder)
    if hf and (not candidates or any(folder.glob("*.safetensors"))):
        return read_hf_dir(folder, opener)
    if len(candidates) == 1:
        return _read(candidates[0], opener)
    if candidates:
        shown = ", ".join(each.name for each in candidates[:5]) + (", …" if len(candidates) > 5 else "")
        raise InvalidInput(f"{folder} holds {len(candidates)} GGUF models; name one of them: {shown}")
    if any(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"{folder} holds safetensors weights but no config.json; copy or download the rest"
        )
    raise InvalidInput(f"{folder} holds no model: neither a GGUF file nor a config.json; {_READS}")


def _gguf_candidates(folder: Path) -> list[Path]:
    """Return the GGUF models in ``folder``: of a split one its first part, and no projectors."""
    found: dict[str, Path] = {}
    for each in sorted(folder.iterdir()):
        if each.suffix.lower() != ".gguf" or "mmproj" in each.name.lower() or not each.is_file():
            continue
        part = part_of(each.name)
        found.setdefault(f"{part.stem} of {part.count}" if part else each.name, each)
    return list(found.values())
