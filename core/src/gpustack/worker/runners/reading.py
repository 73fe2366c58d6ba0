"""What of this machine an engine in a container sees: the model's files, at their own paths, read-only.

A file of a hub's cache is a link to another folder; what it leads to is shown at the path of the link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpustack.plugin import ModelFacts

#: What files are called that engines look for beside the model.
_MODELS = (".gguf", ".safetensors", ".jinja")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")


def reads(facts: ModelFacts, words: Sequence[str] = ()) -> dict[str, str]:
    """Return what to show of a model: where it lies, by the path at which it is seen. Reads folders.

    What ``words``, parameters or paths, name of this machine besides is shown too: adapters, drafts, templates.

    Of a model in one file, or in several of a name, it is these and its companions, and not their folder, which may be
    somebody's home; of a model that is a folder, the folder with what the links in it lead to.
    """
    path = Path(facts.path)
    shown = _model(facts, path)
    for each in _named(words, path if path.is_dir() else path.parent):
        if not any(each.is_relative_to(place) for place in shown):
            shown[str(each)] = str(each.resolve())
    return shown


def _model(facts: ModelFacts, path: Path) -> dict[str, str]:
    if path.is_dir():
        return {str(path): str(path.resolve()), **dict(_linked(path))}
    names = {path.name, *(name for name, _ in facts.companions)}
    if (shard := _SHARD.fullmatch(path.name)) is not None:
        names |= {each.name for each in path.parent.glob(f"{_escaped(shard[1])}-*-of-*.gguf")}
    files = [path.parent / name for name in sorted(names)]
    return {str(each): str(each.resolve()) for each in files if each.exists()}


def _named(words: Sequence[str], beside: Path) -> Iterator[Path]:
    """Yield the files and folders that are named, absolutely or as they lie beside the model, and exist."""
    for word in words:
        # As a whole, since names may hold whatever parts others.
        for part in dict.fromkeys((word, word.partition("=")[2], *re.split(r"[=,\s]", word))):
            # A scale may follow, as in ADAPTER:0.5.
            for name in dict.fromkeys((part, part.rpartition(":")[0])):
                if name.startswith("/") or name.endswith(_MODELS):
                    each = Path(os.path.normpath(beside / name))
                    if each != Path("/") and each.exists():
                        yield each


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def _linked(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the folders outside that links in ``folder`` lead to: such a link says where it leads, which must be there."""
    inside = folder.resolve()
    found = set[Path]()
    for place, _, names in os.walk(folder):
        for name in names:
            each = Path(place) / name
            if each.is_symlink() and not (target := each.resolve()).is_relative_to(inside):
                # Links of several steps are followed in the container, step by step.
                found |= {target.parent, _absolute(each).parent}
    for each in sorted(found):
        if not each.is_relative_to(inside) and each != Path("/"):
            yield str(each), str(each.resolve())


def _absolute(link: Path) -> Path:
    """Return where a link leads, one step far."""
    return Path(os.path.normpath(link.parent / link.readlink()))
