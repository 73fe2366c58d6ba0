"""Backends as YAML files."""

from __future__ import annotations

import pytest

from gpustack.kit.errors import InvalidInput
from gpustack.schemas import InferenceBackendPublic
from gpustack.schemas.backend_yaml import read_backend, write_backend

#: A few lines that stand for a hundred thousand values.
BOMB = "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 7))
GOOD = """\
backend_name: mine
default_version: "1.0"
default_run_command: serve --port {{port}} {{model_path}}
version_configs:
  "1.0": {}
  2.0:
    run_command: serve2 {{port}}
    env: {A: "1"}
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "description: x\nbackend_name: mine",
            "f:2: backend_name: a backend of your own has a default_run_command",
        ),
        (GOOD.replace('"1.0"\n', '"3"\n'), "f:2: default_version: '3' is not in version_configs: 1.0, 2.0"),
        (
            GOOD.replace("default_run_command", "description"),
            "f:5: version_configs.1.0: it has neither run_command nor image_name",
        ),
        (
            GOOD.replace('{A: "1"}', "{}\n    runner: container"),
            "f:6: version_configs.2.0: a container needs an image_name",
        ),
        (
            GOOD.replace("serve2", "nice {{command}}"),
            "f:7: version_configs.2.0.run_command: {{command}} is the engine that a plugin installs",
        ),
        (
            GOOD + "    packages: [einops]",
            "f:9: version_configs.2.0.packages: they go into the environment of an engine",
        ),
    ],
)
def test_a_backend_that_no_plugin_brings_says_how_it_runs(text: str, says: str) -> None:
    read_backend(text, "f", ["mine"])

    with pytest.raises(InvalidInput) as caught:
        read_backend(text, "f", [])
    assert str(caught.value).startswith(says)


def test_what_was_written_is_read_again() -> None:
    read = read_backend(GOOD, "f")
    public = InferenceBackendPublic(
        id=1, plugin="", distribution="", distribution_version="", is_built_in=False, **read.model_dump()
    )

    assert read_backend(write_backend(public), "f") == read
    assert list(read.version_configs) == ["1.0", "2.0"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f: nothing is in it"),
        ("- a", "f:1: a backend is a mapping that begins with backend_name"),
        ("backend_name: [", "f:1: expected the node content"),
        ("description: x", "f:1: backend_name: it is missing"),
        ("backend_name: x\nport: 1", "f:2: port: there is no such field"),
        ("backend_name: x\ndefault_version: 1.0", "f:2: default_version: it is read as a number; put it into quot"),
        (
            GOOD.replace("serve2 {{port}}", "serve2 {{prot}}"),
            "f:7: version_configs.2.0.run_command: there is no placeholder {{prot}}; the known ones are {{model_path}}",
        ),
        (GOOD.replace('A: "1"', 'A-B: "1"'), "f:8: version_configs.2.0.env: 'A-B' is not an environment variable"),
        (GOOD + "    packages: [a b c]", "f:9: version_configs.2.0.packages: 'a b c' is no package"),
        (GOOD + "    runner: box", "f:9: version_configs.2.0.runner: it is 'box', and can be 'process' or 'container'"),
        (GOOD + "    image_name: UPPER !!", "f:9: version_configs.2.0.image_name: 'UPPER !!' has characters that cannot"),
        ("backend_name: a b", "f:1: backend_name: 'a b' has characters that cannot be there"),
        ("backend_name: x\nbackend_name: y", "f:2: backend_name is there twice"),
        (BOMB, "f:1: more than 20000 values"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_backend(text, "f")

    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
