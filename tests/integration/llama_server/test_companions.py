"""What is loaded besides a model, on the real engine: it sees, it is adapted, a smaller one guesses ahead."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpustack.plugin import LaunchRequest
from gpustack.worker.facts import read_facts
from support.engine import InstalledEngine, RunningEngine, llama_cpp_backend, running
from support.running import free_ports
from support.tiny_companions import TOKENS, make_tiny_adapter, make_tiny_projector, picture

Start = Callable[..., RunningEngine]


@pytest.fixture
def folder(tmp_path: Path, tiny_gguf: Path) -> Path:
    """A folder with the chat model, in two precisions by their names."""
    made = tmp_path / "a model"
    made.mkdir()
    for name in ("tiny-F32.gguf", "tiny-Q4_K_M.gguf"):
        (made / name).symlink_to(tiny_gguf)
    return made


@pytest.fixture
def start(engine: InstalledEngine, folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Return what serves the model of the folder with the command line that the backend gives for it."""
    with ExitStack() as stack:

        def run(*parameters: str) -> RunningEngine:
            (port,), model = free_ports(1), folder / "tiny-F32.gguf"
            request = LaunchRequest(
                instance_name="tiny-1",
                model_name="tiny",
                model=read_facts(model),
                command=str(engine.command),
                version=engine.version,
                host="127.0.0.1",
                port=port,
                model_path=str(model),
                parameters=parameters,
            )
            argv = llama_cpp_backend(engine.data_dir).launch(request).argv
            server = stack.enter_context(running(argv, port, tmp_path / f"{port}.log"))
            server.wait_ready()
            return server

        yield run


def said(server: RunningEngine, content: Any) -> tuple[str, int]:
    """Return the answer to a message, and the tokens of the prompt."""
    answer = server.post(
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 12,
            "temperature": 0,
            "ignore_eos": True,
        },
    )
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]


def test_the_projector_beside_the_model_lets_it_see(start: Start, folder: Path) -> None:
    """Random weights know no colours; but what they say depends on what they are shown, and on nothing else."""
    shutil.copy(make_tiny_projector(), folder / "mmproj-F16.gguf")
    server = start()
    question = {"type": "text", "text": "What is it?"}

    (red, tokens), (blue, _), (again, _) = (
        said(server, [question, picture(*colour)]) for colour in ((255, 0, 0), (0, 0, 255), (255, 0, 0))
    )

    assert red == again
    assert red != blue
    assert tokens == said(server, [question])[1] + TOKENS


def test_one_that_is_named_is_found_beside_the_model_and_another_models_is_left_alone(
    start: Start, folder: Path
) -> None:
    shutil.copy(make_tiny_projector(), folder / "mmproj-other-7b.gguf")

    seeing, blind = start("--mmproj", "mmproj-other-7b.gguf"), start()

    assert said(seeing, [picture(255, 0, 0)])
    with pytest.raises(OSError, match="HTTP Error 500"):
        said(blind, [picture(255, 0, 0)])


def test_an_adapter_changes_what_it_says(start: Start, folder: Path) -> None:
    shutil.copy(make_tiny_adapter(), folder / "pirate.gguf")
    plain, adapted, hardly = start(), start("--lora=pirate.gguf"), start("--lora-scaled pirate.gguf:0.0")

    answer = said(plain, "Tell me of cats.")

    assert said(adapted, "Tell me of cats.") != answer
    assert said(hardly, "Tell me of cats.") == answer


def test_a_small_model_guesses_ahead(start: Start) -> None:
    """Here it is the model itself, which guesses right each time. A draft that is loaded but not asked guesses nothing."""
    plain, guessing = start(), start("--model-draft", "tiny-Q4_K_M.gguf", "--draft-max=4")

    assert said(guessing, "import os") == said(plain, "import os")

    metrics = guessing.get("/metrics")
    drafted, accepted = (
        int(re.search(rf"^llamacpp:spec_decode_num_{what}_tokens_total (\d+)$", metrics, re.MULTILINE)[1])
        for what in ("draft", "accepted")
    )
    assert accepted == drafted > 4


def test_why_it_does_not_start_is_read_out_of_its_log(
    engine: InstalledEngine, folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """A model of a kind that came later, as this engine sees one."""
    newer, backend = folder / "newer.gguf", llama_cpp_backend(tmp_path)
    newer.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lmxyz"))
    command = [str(engine.command), "--port", str(free_ports(1)[0]), "--model", str(newer)]

    with running(command, 0, tmp_path / "log") as server:
        assert server.process.wait(30) == 1

    said = backend.failure((tmp_path / "log").read_text())
    assert said.startswith(
        "this version of the engine does not know models of architecture 'lmxyz'; choose a newer"
    )
