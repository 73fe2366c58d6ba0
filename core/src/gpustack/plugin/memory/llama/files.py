"""Files that an engine made of llama.cpp loads besides the model: projectors, adapters, draft models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePath

from gpustack.plugin.memory.extras import Extra, extra_bytes
from gpustack.plugin.memory.llama.parameters import Parameter, Parameters, beside
from gpustack.plugin.values import ModelFacts

#: Flags whose values are such files.
FILES = ("--mmproj", "--lora", "--lora-scaled", "--model-draft")

#: Parts of a name that tell how the weights are stored, or that it is a projector, and not of which model.
_STORED = re.compile(r"(?:mmproj|model|[bf]?f?(?:16|32)|fp(?:16|32)|i?q\d\w*|[kmsl]|xs|xxs|xl|ud|\d)\Z")


def with_companions(model: ModelFacts, parameters: Parameters, path: str) -> Parameters:
    """Return the parameters with all files named in full, and with the projector that lies beside the model at ``path``.

    A language model gets that when it is the model's own (see :func:`projector_beside`), unless the parameters name one
    or say ``--no-mmproj``.
    """
    parameters = parameters.with_files_beside(path, FILES)
    if model.categories[:1] != ("llm",) or parameters.has("--mmproj") or parameters.has("--no-mmproj"):
        return parameters
    if not (name := projector_beside(model)):
        return parameters
    file = beside(path, name)
    return replace(parameters, given=(Parameter("--mmproj", file, ("--mmproj", file)), *parameters.given))


def projector_beside(model: ModelFacts) -> str:
    """Return the name of the projector beside the model that is its own; empty for none."""
    return projector_among(PurePath(model.path).name, (name for name, _ in model.companions))


def projector_among(model: str, others: Iterable[str]) -> str:
    """Return the name among ``others``, GGUF files beside ``model``, of the projector that is its own; empty for none.

    It has the model's name, or none at all while nothing but this model (in whatever precision) lies there. Of several
    the first by name is taken. A projector of another model would keep the engine from starting, so none is guessed.
    """
    own, projectors, alone = _name(model), [], True
    for each in sorted(others):
        if "mmproj" in each.lower():
            projectors.append(each)
        elif "imatrix" not in each.lower():
            alone = alone and _name(each) == own
    names = [*([own] if own else []), *([""] if alone else [])]
    return next((each for each in projectors if _name(each) in names), "")


def _name(file: str) -> str:
    """Return what is left of a file's name without all that says how it is stored."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf\Z", "", file.lower())
    return "-".join(each for each in re.split(r"[-_.]", stem) if each and not _STORED.match(each))


def has_draft(parameters: Parameters) -> bool:
    """Tell whether a smaller model guesses ahead."""
    return parameters.get("--model-draft") is not None


def files_bytes(model: ModelFacts, parameters: Parameters) -> int:
    """Return the bytes of all these files."""
    return extra_bytes(model, _extras(parameters))


def _extras(parameters: Parameters) -> Iterator[Extra]:
    for each in parameters.given:
        match each.flag, each.value:
            case ("--mmproj", str(path)):
                yield Extra(kind="projector", path=path)
            case ("--lora", str(paths)):
                yield from (Extra(kind="adapter", path=path) for path in paths.split(","))
            case ("--lora-scaled", str(paths)):
                yield from (
                    Extra(kind="adapter", path=re.sub(r":[-+.\de]+\Z", "", path)) for path in paths.split(",")
                )
            case ("--model-draft", str(path)):
                yield Extra(kind="draft", path=path)
