"""The example file, the JSON Schema and the reference page, which are made from the declarations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gpustack.settings.declared import Options
from gpustack.settings.load import Loaded, read
from gpustack.settings.reference import example, page, schema

HERE = Path(__file__).parent
LINE = re.compile(r"^#([a-z0-9_]+): (.*)$", re.MULTILINE)
#: What they name is read with the settings.
NEED_A_FILE = {"token_file", "gateway_kubeconfig"}


def from_file(text: str, file: Path, options: Options, **flags: str) -> Loaded:
    file.write_text(text)
    return read({"config_file": str(file), **flags}, options)


def _letters(text: str) -> str:
    """Return text as it is the same in lines of any length."""
    return re.sub(r"[\s#-]", "", text)


def without_comments(options: Options) -> dict[str, str]:
    """Return the example's lines by their option, uncommented."""
    return {name: f"{name}: {value}\n" for name, value in LINE.findall(example(options))}


# The example --------------------------------------------------------------------------------------------


def test_the_example_sets_nothing_as_it_is_printed(options: Options, file: Path) -> None:
    assert yaml.safe_load(example(options)) is None
    assert (
        from_file(example(options), file, options).settings.model_copy(update={"config_file": None})
        == read({}, options).settings
    )


def test_the_example_has_every_option(options: Options) -> None:
    left_out = {name for name, option in options.items() if option.option.successor} | {"config_file"}
    assert left_out == {"config_file", "worker_ip"}
    assert set(without_comments(options)) == set(options) - left_out
    text = _letters(example(options))
    for option in options.values():
        assert _letters(option.help) in text or option.name in left_out


def test_each_line_of_the_example_is_right_by_itself(options: Options, file: Path) -> None:
    for name, line in without_comments(options).items():
        loaded = from_file(line, file, options)
        problems = [each for each in loaded.problems if "is given without" not in each]
        if name in NEED_A_FILE and problems:
            assert "cannot be read" in problems[0]
        else:
            assert not problems, line


def test_a_default_in_the_example_is_the_default(options: Options, file: Path) -> None:
    lines = without_comments(options)
    shown = [option for option in options.values() if option.default_shown and option.name in lines]
    defaults = [option for option in shown if not option.option.default_text]
    assert len(defaults) >= 40
    loaded = from_file("".join(lines[option.name] for option in defaults), file, options)
    assert not loaded.problems
    assert not loaded.warnings
    assert {option.name for option in defaults} <= set(loaded.given)
    for option in defaults:
        assert loaded.value(option.name) == option.default, option.name


def test_the_example_loads_without_its_comments(options: Options, file: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token")
    lines = without_comments(options)
    lines["token_file"] = f"token_file: {tmp_path / 'token'}\n"
    # A server has no server to connect to; the certificate's files are looked at later.
    del lines["server_url"]
    loaded = from_file("".join(lines.values()), file, options)
    assert not loaded.problems
    assert len(loaded.given) > 30
    # Sections and words stay comments.
    uncommented = LINE.sub(r"\1: \2", example(options))
    assert set(yaml.safe_load(uncommented)) == set(without_comments(options))


# The schema ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator(options: Options) -> Any:
    made = schema(options)
    json.dumps(made)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def wrong(validator: Any, content: dict[str, Any]) -> list[str]:
    return sorted(".".join(map(str, error.path)) or "root" for error in validator.iter_errors(content))


def test_the_schema_takes_the_example(validator: Any, options: Options) -> None:
    given = yaml.safe_load("".join(without_comments(options).values()))
    assert not wrong(validator, {name: value for name, value in given.items() if value is not None})


def test_the_schema_takes_the_file_of_the_reference_page(validator: Any) -> None:
    assert not wrong(validator, yaml.safe_load((HERE / "reference_page.yaml").read_text()))


@pytest.mark.parametrize(
    "content",
    [
        {"prot": 80},
        {"plugins": {}},
        {"effective": []},
        {"config_file": "/etc/gpustack/config.yaml"},
    ],
)
def test_the_schema_refuses_what_is_no_option(validator: Any, content: dict[str, Any]) -> None:
    assert wrong(validator, content) == ["root"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"),
        ("port", 70000),
        ("ray_port", 0),
        ("debug", "maybe"),
        ("allow_methods", 1),
        ("allow_methods", []),
        ("service_port_range", "40000"),
        ("system_reserved", {"disk": 1}),
        ("system_reserved", {"ram": -1}),
        ("bootstrap_password", "short"),
        ("gateway_concurrency", 0),
    ],
)
def test_the_schema_refuses_a_wrong_value(validator: Any, name: str, value: object) -> None:
    (found,) = wrong(validator, {name: value})
    assert found.partition(".")[0] == name


def test_the_schema_says_what_each_is(options: Options) -> None:
    properties = schema(options)["properties"]
    assert list(properties) == [name for name in options if name != "config_file"]
    assert properties["port"] == {
        "description": options["port"].help,
        "type": "integer",
        "minimum": 0,
        "maximum": 65535,
        "default": 80,
    }
    assert properties["worker_ip"]["deprecated"]
    assert {name for name, each in properties.items() if each.get("writeOnly")} == {
        name for name, option in options.items() if option.secret
    }
    assert properties["allow_methods"]["default"] == ["GET", "POST"]
    assert properties["system_reserved"]["default"] == {"ram": 2, "vram": 1}


# The page -----------------------------------------------------------------------------------------------


def test_the_page_has_a_row_for_each_option(options: Options) -> None:
    rows = [line for line in page(options).splitlines() if line.startswith("| `")]
    assert len(rows) == len(options)
    by_name = {row.partition(" |")[0].rpartition("<br>`")[2].strip("`"): row for row in rows}
    assert set(by_name) == set(options)
    for name, option in options.items():
        cells = re.split(r"(?<!\\)\|", by_name[name])
        assert len(cells) == 5, name
        for variable in option.variables:
            assert f"`{variable}`" in cells[1]
        assert f"`{option.flag}" in cells[1] or not option.flag
        assert (option.option.short or "`") in cells[1]
        assert ("a secret" in cells[3]) == option.secret
        assert ("reloaded without a restart" in cells[3]) == option.reload


def test_the_page_says_what_has_no_effect_yet(options: Options) -> None:
    text = page(options)
    assert "**This version has no metrics yet: without effect.**" in text
    assert "**This version has no Kubernetes yet: refused.**" in text


def test_the_page_ends_with_the_example(options: Options) -> None:
    assert page(options).endswith("```yaml\n" + example(options) + "```\n")
