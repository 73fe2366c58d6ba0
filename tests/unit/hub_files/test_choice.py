"""Which files of a repository a model needs."""

from __future__ import annotations

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.worker.artifacts.hub.api import Listing, RepoFile
from gpustack.worker.artifacts.hub.choice import choose


def a_listing(*names: str) -> Listing:
    return Listing(
        repo="org/name", commit="0" * 40, files=tuple(RepoFile(path=name, size=10) for name in names)
    )


def chosen(pattern: str, *names: str) -> list[str]:
    return [each.path for each in choose(a_listing(*names), pattern).files]


QUANTS = ("m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "README.md")
SPLIT = ("big-Q8_0/big-Q8_0-00001-of-00002.gguf", "big-Q8_0/big-Q8_0-00002-of-00002.gguf", "big-IQ2_M.gguf")
DIRECTORY = ("config.json", "tokenizer.json", "tokenizer.model", "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors", "model.safetensors.index.json", "modeling_own.py")  # fmt: skip


def test_of_several_quantisations_the_usual_one_is_taken_and_said() -> None:
    choice = choose(a_listing(*QUANTS), "")
    assert [each.path for each in choice.files] == ["m-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert choice.main == "m-Q4_K_M.gguf"
    assert choice.note == "Q4_K_M chosen of 4 GGUF models in org/name; :PATTERN takes another"


def test_a_single_model_is_taken_without_a_word() -> None:
    choice = choose(a_listing("only.gguf", "mmproj-only.gguf", "imatrix.gguf"), "")
    assert (choice.main, choice.note, choice.size) == ("only.gguf", "", 20)


@pytest.mark.parametrize(
    ("names", "brought"),
    [
        (("eye-Q8_0.gguf", "mmproj-eye-F16.gguf", "mmproj-eye-F32.gguf"), ["mmproj-eye-F16.gguf"]),
        (("eye-Q8_0.gguf", "other-Q2_K.gguf", "mmproj-F16.gguf"), []),
        (("eye-Q8_0.gguf", "other-Q2_K.gguf", "mmproj-eye.gguf"), ["mmproj-eye.gguf"]),
        (("eye-Q8_0.gguf", "vision/mmproj-eye.gguf"), []),
        (("q8/eye-Q8_0.gguf", "q8/mmproj-F16.gguf", "mmproj-F16.gguf"), ["q8/mmproj-F16.gguf"]),
    ],
)
def test_a_model_comes_with_its_own_projector_from_its_folder(
    names: tuple[str, ...], brought: list[str]
) -> None:
    assert chosen("Q8_0", *names) == [names[0], *brought]


def test_all_parts_of_a_split_model_come_together() -> None:
    assert chosen("", *SPLIT) == list(SPLIT[:2])
    assert chosen("Q8_0", *SPLIT) == list(SPLIT[:2])
    assert chosen("*00002-of-00002.gguf", *SPLIT) == list(SPLIT[:2])
    assert choose(a_listing(*SPLIT), "*Q8_0*").main == SPLIT[0]


@pytest.mark.parametrize(
    ("pattern", "file"),
    [("Q8_0", "m-Q8_0.gguf"), ("q4_k_s", "m-Q4_K_S.gguf"), ("*Q2_K*", "m-Q2_K.gguf"), ("m-Q2_K.gguf", "m-Q2_K.gguf"),
     ("mmproj-F16.gguf", None)],
)  # fmt: skip
def test_a_pattern_is_a_name_a_glob_or_a_quantisation(pattern: str, file: str | None) -> None:
    if file is None:
        with pytest.raises(InvalidInput, match="fits no GGUF or safetensors"):
            chosen(pattern, *QUANTS)
    else:
        assert chosen(pattern, *QUANTS) == [file, "mmproj-F16.gguf"]


def test_a_directory_is_its_weights_with_what_loads_them() -> None:
    rest = ("README.md", ".gitattributes", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json",
            "original/consolidated.00.pth", "consolidated.safetensors", "model.fp16.safetensors")  # fmt: skip
    assert sorted(chosen("", *DIRECTORY, *rest[:-1])) == sorted(DIRECTORY)
    assert "model.fp16.safetensors" not in chosen("", "config.json", "model.safetensors", rest[-1])
    assert choose(a_listing(*DIRECTORY), "").main == ""


def test_a_pattern_for_weights_brings_their_companions() -> None:
    assert set(chosen("model-*.safetensors", *DIRECTORY)) == set(DIRECTORY)


def test_a_pipeline_is_taken_with_its_parts() -> None:
    names = (
        "model_index.json",
        "unet/config.json",
        "unet/d.safetensors",
        "unet/d.fp16.safetensors",
        "vae/d.safetensors",
    )
    assert set(chosen("", *names)) == set(names) - {"unet/d.fp16.safetensors"}


@pytest.mark.parametrize(
    ("pattern", "names", "line"),
    [
        (
            "",
            ("7b-Q4_K_M.gguf", "13b-Q4_K_M.gguf"),
            "holds 2 GGUF models; name one as org/name:PATTERN: 13b-Q4_K_M.gguf, 7b",
        ),
        ("", ("a-F16.gguf", "a-F32.gguf"), "holds 2 GGUF models"),
        ("*", QUANTS, "'\\*' fits 4 GGUF models in org/name; name one: m-Q2_K.gguf"),
        ("Q3_K", QUANTS, "has no file like 'Q3_K'; it has: m-Q2_K.gguf, m-Q4_K_M.gguf"),
        ("", ("pytorch_model.bin", "config.json"), "PyTorch pickles only"),
        ("", ("adapter.safetensors",), "no config.json; it may be an adapter"),
        ("", ("README.md",), "holds no model"),
        ("", (), "holds no model"),
        ("README.md", ("README.md",), "fits no GGUF or safetensors file"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(pattern: str, names: tuple[str, ...], line: str) -> None:
    with pytest.raises(InvalidInput, match=line) as caught:
        chosen(pattern, *names)
    assert "\n" not in caught.value.message
