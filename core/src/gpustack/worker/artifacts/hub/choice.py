"""Which files of a repository a model needs. Pure: from a listing and a pattern to names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from gpustack.kit.errors import InvalidInput
from gpustack.plugin.memory.llama import projector_among
from gpustack.worker.artifacts.hub.api import Listing, RepoFile
from gpustack.worker.facts.gguf_model import part_of

#: Of several quantisations the first of these that is there: what llama.cpp and Ollama take, then its neighbours.
_PREFERRED = (
    "Q4_K_M",
    "Q4_K_S",
    "Q4_K_L",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_0",
    "Q6_K",
    "Q8_0",
    "IQ4_XS",
    "IQ4_NL",
    "MXFP4",
)
#: What loads a safetensors model beside its weights.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".vocab", ".spm")
_ASIDE = {"onnx", "openvino", "original", "coreml", "gguf", "tflite", "runs", "assets", "images"}
_LARGEST_COMPANION = 256 << 20
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is fetched, and what of it an engine is pointed at."""

    files: tuple[RepoFile, ...]
    #: The (first) GGUF file; empty for the whole directory.
    main: str
    #: What was decided for the user; empty when there was nothing to decide.
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)

    @property
    def name(self) -> str:
        """What is meant, in a message."""
        return self.main or "the directory"


def choose(listing: Listing, pattern: str) -> Choice:
    """Return the files that ``pattern`` means, or, when it is empty, that the model in the repository needs.

    A pattern is a name, has ``*`` and ``?`` as in a shell, or is a quantisation such as ``Q4_K_M``. Raises InvalidInput
    with one line when nothing fits or several models do.
    """
    choice = _choose(listing, pattern)
    return replace(choice, files=(*choice.files, *_projector(listing, choice)))


def _choose(listing: Listing, pattern: str) -> Choice:
    if pattern:
        return _by_pattern(listing, pattern)
    if any(_is_weights(each) for each in listing.files) and _has(listing, "config.json", "model_index.json"):
        return _directory(listing)
    if models := _gguf_models(listing.files):
        return _default(listing, models)
    raise InvalidInput(_nothing(listing))


# GGUF -----------------------------------------------------------------------------------------------------


def _gguf_models(files: Iterable[RepoFile]) -> dict[str, list[RepoFile]]:
    """Return the models by the name of their (first) file, with all parts; no projectors, no matrices."""
    found: dict[tuple[str, int], list[RepoFile]] = {}
    for file in sorted(files, key=lambda each: each.path):
        name = PurePosixPath(file.path).name.lower()
        if not name.endswith(".gguf") or "mmproj" in name or "imatrix" in name:
            continue
        part = part_of(file.path)
        found.setdefault((part.stem, part.count) if part else (file.path, 0), []).append(file)
    return {parts[0].path: parts for parts in found.values()}


def _default(listing: Listing, models: dict[str, list[RepoFile]]) -> Choice:
    if len(models) == 1:
        main, parts = next(iter(models.items()))
        return Choice(files=tuple(parts), main=main)
    for quantization in _PREFERRED:
        fitting = [main for main in models if _has_tag(main, quantization)]
        if len(fitting) > 1:
            break
        if fitting:
            main = fitting[0]
            note = f"{quantization} chosen of {len(models)} GGUF models in {listing.repo}; :PATTERN takes another"
            return Choice(files=tuple(models[main]), main=main, note=note)
    raise InvalidInput(
        f"{listing.repo} holds {len(models)} GGUF models; name one as {listing.repo}:PATTERN: {_shown(models)}"
    )


def _has_tag(path: str, tag: str) -> bool:
    """Tell whether the tag stands by itself in the path: ``Q4_K`` is not in ``x-Q4_K_M.gguf``."""
    return bool(re.search(rf"(?i)(^|[-._/ ]){re.escape(tag)}([-./ ]|$)", path))


def _projector(listing: Listing, choice: Choice) -> list[RepoFile]:
    """Return what lets a chosen GGUF model see or hear: its own projector beside it; nothing where there is none."""
    main, chosen = PurePosixPath(choice.main), {each.path for each in choice.files}
    beside = {
        PurePosixPath(each.path).name: each
        for each in listing.files
        if main.suffix and PurePosixPath(each.path).parent == main.parent and each.path not in chosen
    }
    name = projector_among(main.name, [each for each in beside if each.lower().endswith(".gguf")])
    return [beside[name]] if name else []


# Patterns -------------------------------------------------------------------------------------------------


def _by_pattern(listing: Listing, pattern: str) -> Choice:
    matched = _matched(listing, pattern)
    if not matched:
        models = _gguf_models(listing.files) or {
            each.path: [each] for each in listing.files if _is_weights(each)
        }
        raise InvalidInput(
            f"{listing.repo} has no file like {pattern!r}; it has: {_shown(models) or 'no model files'}"
        )
    if models := _gguf_models(matched):
        if len(models) > 1:
            raise InvalidInput(
                f"{pattern!r} fits {len(models)} GGUF models in {listing.repo}; name one: {_shown(models)}"
            )
        main = next(iter(models))
        # One part of a split model means all of them.
        whole = next(m for m in _gguf_models(listing.files).items() if any(p.path == main for p in m[1]))
        return Choice(files=tuple(whole[1]), main=whole[0])
    if any(_is_weights(each) for each in matched):
        named = {each.path for each in matched}
        extra = [each for each in listing.files if _is_companion(each) and each.path not in named]
        return Choice(files=(*matched, *extra), main="")
    raise InvalidInput(
        f"{pattern!r} fits no GGUF or safetensors file in {listing.repo}, only {matched[0].path}"
    )


def _matched(listing: Listing, pattern: str) -> list[RepoFile]:
    if exact := [each for each in listing.files if each.path == pattern]:
        return exact
    found = [
        each
        for each in listing.files
        if fnmatchcase(each.path, pattern) or fnmatchcase(PurePosixPath(each.path).name, pattern)
    ]
    if found or not re.fullmatch(r"[A-Za-z0-9_]+", pattern):
        return found
    return [
        each for each in listing.files if each.path.lower().endswith(".gguf") and _has_tag(each.path, pattern)
    ]


# Directories ----------------------------------------------------------------------------------------------


def _directory(listing: Listing) -> Choice:
    weights = [each for each in listing.files if _is_weights(each)]
    top = [each for each in weights if "/" not in each.path]
    pipeline = _has(listing, "model_index.json")
    if top and not pipeline:
        weights = top
    if any(PurePosixPath(each.path).name.startswith("model") for each in weights):
        # The same weights once more, in the layout of Mistral's own tools.
        weights = [each for each in weights if not each.path.startswith("consolidated")]
    weights = _without_variants(weights)
    companions = [each for each in listing.files if _is_companion(each)]
    return Choice(files=tuple(sorted((*weights, *companions), key=lambda each: each.path)), main="")


def _without_variants(weights: list[RepoFile]) -> list[RepoFile]:
    """Leave out ``x.fp16.safetensors`` where ``x.safetensors`` is there too."""
    names = {each.path for each in weights}
    return [each for each in weights if re.sub(r"\.[a-z0-9]+(-\d+-of-\d+)?\.safetensors$", r"\1.safetensors", each.path)
            not in names - {each.path}]  # fmt: skip


def _is_weights(file: RepoFile) -> bool:
    path = PurePosixPath(file.path)
    return path.suffix == ".safetensors" and not _ASIDE.intersection(path.parts[:-1])


def _is_companion(file: RepoFile) -> bool:
    path = PurePosixPath(file.path)
    aside = _ASIDE.intersection(path.parts[:-1]) or path.name.startswith(".")
    return path.suffix in _COMPANIONS and file.size <= _LARGEST_COMPANION and not aside


def _has(listing: Listing, *names: str) -> bool:
    return any(each.path in names for each in listing.files)


# Messages -------------------------------------------------------------------------------------------------


def _shown(models: Iterable[str]) -> str:
    names = [*models]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _nothing(listing: Listing) -> str:
    ends = {PurePosixPath(each.path).suffix for each in listing.files}
    if ends & {".bin", ".pt", ".pth"}:
        return f"{listing.repo} holds weights as PyTorch pickles only; choose a repository with safetensors or GGUF"
    if ".safetensors" in ends:
        return f"{listing.repo} holds safetensors weights but no config.json; it may be an adapter, name its base model"
    return f"{listing.repo} holds no model: neither a GGUF file nor safetensors with a config.json"
