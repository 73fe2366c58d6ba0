"""What a third-party plugin declares becomes a flag, a variable and a key, and reaches its extension; a broken one harms
nobody but itself."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field, SecretStr, create_model, field_validator, model_validator

from gpustack.app.start import described
from gpustack.extensions import Catalogue, load_catalogue
from gpustack.kit.errors import SettingsError
from gpustack.plugin import Host, HttpUrl, Option, PluginError
from gpustack.settings import reference
from gpustack.settings.click_bridge import GroupedCommand, click_options, typed
from gpustack.settings.declared import CORE
from gpustack.settings.load import Flags, read
from gpustack.settings.shown import HIDDEN, shown
from support.settings import a_detector, a_plugin

HOST = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))


class AcmeSettings(BaseModel):
    """Some with an :class:`Option`, and some as anybody writes a model."""

    acme_url: Annotated[HttpUrl, Option(group="Worker", value="URL", help="Where Acme is.", short="-a")] = (
        "http://acme.example"
    )
    acme_key: Annotated[str, Option(secret=True, help="The key of Acme.")] = ""
    acme_retries: int = Field(default=3, ge=0, description="How often Acme is asked again.")
    acme_fast: bool = False
    acme_names: list[str] = []
    acme_extra: dict[str, int] = {"one": 1}
    acme_mode: Literal["soft", "hard"] = "soft"
    acme_place: Path | None = None


class Needy(BaseModel):
    needy_key: str
    needy_count: int = 1


def loaded_with(monkeypatch: pytest.MonkeyPatch, *models: type[BaseModel], **more: Any) -> Catalogue:
    return load_catalogue([a_plugin(monkeypatch, "acme", *models, **more)])


def failure(catalogue: Catalogue) -> str:
    (found,) = catalogue.failures
    assert "\n" not in str(found)
    return str(found)


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    catalogue = loaded_with(monkeypatch, extensions=[a_detector("acme", AcmeSettings)])
    assert not catalogue.failures
    return catalogue


# Names, defaults, values --------------------------------------------------------------------------------

VALUES: dict[str, tuple[str, str, Any]] = {
    "acme_url": ("http://other.example", "http://other.example", "http://other.example"),
    "acme_key": ("1234", "'1234'", "1234"),
    "acme_retries": ("5", "5", 5),
    "acme_fast": ("yes", "true", True),
    "acme_names": ("a,b", "[a, b]", ["a", "b"]),
    "acme_extra": ('{"two": 2}', "{two: 2}", {"two": 2}),
    "acme_mode": ("hard", "hard", "hard"),
    "acme_place": ("/srv/acme", "/srv/acme", Path("/srv/acme")),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_field_has_a_flag_a_variable_and_a_key_and_its_value_arrives(
    name: str, acme: Catalogue, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, in_yaml, expected = VALUES[name]

    def arrived(flags: Flags) -> Any:
        settings = read(flags, acme.options).checked()
        made = Catalogue(given=settings.plugins).make(acme.system_detectors["acme"], HOST)
        return getattr(made.settings, name)

    assert arrived({}) == getattr(AcmeSettings(), name)
    assert arrived({name: text}) == expected
    file.write_text(f"{name}: {in_yaml}\n")
    assert arrived({"config_file": str(file)}) == expected
    file.unlink()
    monkeypatch.setenv("GPUSTACK_" + name.upper(), text)
    assert arrived({}) == expected


def test_every_field_is_tried_here() -> None:
    assert set(VALUES) == set(AcmeSettings.model_fields)


def test_the_help_of_start_has_the_options(acme: Catalogue) -> None:
    command = GroupedCommand("start", params=click_options(acme.options))
    text = CliRunner().invoke(command, ["--help"], terminal_width=10_000).output
    worker, server = text.partition("Worker Options")[2], text.partition("Server Options")[2]
    lines = [" ".join(line.split()) for line in worker.splitlines()]
    assert "-a, --acme-url URL Where Acme is. [default: http://acme.example]" in lines
    lines = [" ".join(line.split()) for line in server.partition("Worker Options")[0].splitlines()]
    assert "--acme-retries N How often Acme is asked again. [default: 3]" in lines
    assert '--acme-extra JSON [default: {"one": 1}]' in lines
    assert any(line.startswith("--acme-fast [true|false]") for line in lines)
    assert any(line.startswith("--acme-place PATH") for line in lines)
    assert "--acme-key VALUE The key of Acme." in lines


def test_the_options_are_typed_like_the_core_s(acme: Catalogue) -> None:
    command = GroupedCommand("start", params=click_options(acme.options), callback=lambda **all_: typed(all_))
    words = ["--acme-fast", "-a", "http://x", "--acme-names", "a", "--acme-names", "b", "--port", "1"]
    assert command.main(words, standalone_mode=False) == {
        "acme_fast": "true",
        "acme_url": "http://x",
        "acme_names": ["a", "b"],
        "port": "1",
    }


def test_a_relative_path_is_meant_where_it_was_typed(
    acme: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read({"acme_place": "here"}, acme.options).settings.plugins == {
        "acme_place": str(tmp_path / "here")
    }


def test_generated_texts_have_them(acme: Catalogue) -> None:
    assert "#acme_retries: 3\n" in reference.example(acme.options)
    assert "`--acme-retries N`<br>`GPUSTACK_ACME_RETRIES`" in reference.page(acme.options)
    assert "of plugin acme" in reference.page(acme.options)
    assert reference.schema(acme.options)["properties"]["acme_retries"]["minimum"] == 0


# What is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("acme_retries", "often", "--acme-retries 'often': give a whole number"),
        ("acme_retries", "-1", "--acme-retries '-1': give 0 or more"),
        ("acme_fast", "very", "--acme-fast 'very': give true or false"),
        ("acme_mode", "loud", "--acme-mode 'loud': give 'soft' or 'hard'"),
        ("acme_extra", '{"two": "x"}', '--acme-extra \'{"two": "x"}\': two: give a whole number'),
        ("acme_extra", "x", "--acme-extra 'x': give a JSON object such as {\"one\": 1}"),
        ("acme_url", "x", "--acme-url 'x': give a URL such as http"),
        ("acme_place", "", "--acme-place '': give a path"),
    ],
)
def test_a_wrong_value_is_one_line(acme: Catalogue, name: str, text: str, line: str) -> None:
    (problem,) = read({name: text}, acme.options).problems
    assert problem.startswith(line)


def test_a_wrong_value_of_a_field_with_an_alias_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("Model", acme_count=(int, Field(1, alias="acmeCount")))
    (line,) = read({"acme_count": "x"}, loaded_with(monkeypatch, model).options).problems
    assert line == "--acme-count 'x': give a whole number"


def test_a_secret_is_one(acme: Catalogue) -> None:
    loaded = read({"acme_key": "very-secret"}, acme.options)
    assert [line for line in loaded.warnings if line.startswith("--acme-key shows in the list of processes")]
    assert next(row["value"] for row in shown(loaded) if row["name"] == "acme_key") == HIDDEN


class Deep(BaseModel):
    inner: SecretStr = SecretStr("")
    count: int = 0


class Hiding(BaseModel):
    """Secrets below the surface of a type."""

    deep_model: Deep = Deep()
    deep_list: list[SecretStr] = []
    deep_map: dict[str, SecretStr] = {}
    deep_checked: Annotated[str, Option(secret=True)] = ""

    @field_validator("deep_checked")
    @classmethod
    def _quotes(cls, value: str) -> str:
        raise ValueError(f"the key {value} is bad")


def test_a_secret_inside_a_value_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    options = loaded_with(monkeypatch, Hiding).options
    given = {"deep_model": '{"inner": "SEK1"}', "deep_list": ["SEK2"], "deep_map": '{"a": "SEK3"}'}
    loaded = read(given, options)
    assert not loaded.problems
    assert len([line for line in loaded.warnings if "list of processes" in line]) == 3
    assert "SEK" not in str(shown(loaded)) + str(loaded.warnings)


def test_what_a_plugin_says_of_a_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    options = loaded_with(monkeypatch, Hiding).options
    given = {"deep_model": '{"inner": "SEK1", "count": "x"}', "deep_checked": "SEK2"}
    assert read(given, options).problems == (
        "--deep-model: count: give a whole number",
        "--deep-checked: it is not right",
    )


@pytest.mark.parametrize("name", ["no_debug", "no_worker_port"])
def test_an_option_cannot_be_what_turns_another_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("Model", **{name: (bool, False)})
    catalogue = loaded_with(monkeypatch, model)
    if name == "no_debug":
        assert "its option 'no_debug' would be --debug turned off or on; rename it" in failure(catalogue)
    else:
        assert name in catalogue.options  # --no-worker-port is nothing of ours


def test_a_required_setting_is_missed_by_who_needs_it_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = loaded_with(monkeypatch, extensions=[a_detector("needy", Needy)])
    loaded = read({"needy_count": "2"}, catalogue.options)
    assert not loaded.problems
    given = Catalogue(given=loaded.settings.plugins)
    with pytest.raises(
        SettingsError, match=r"^needy \(plugin acme\) needs settings that are not given: needy_key$"
    ):
        given.make(catalogue.system_detectors["needy"], HOST)
    found = read({"needy_key": "k", "needy_count": "2"}, catalogue.options).checked()
    made = Catalogue(given=found.plugins).make(catalogue.system_detectors["needy"], HOST)
    assert made.settings == Needy(needy_key="k", needy_count=2)


class Raising(BaseModel):
    acme_x: str = ""

    @field_validator("acme_x")
    @classmethod
    def _check(cls, text: str) -> str:
        raise KeyError(text)


class Whole(BaseModel):
    acme_x: str = ""

    @model_validator(mode="after")
    def _check(self) -> Whole:
        if self.acme_x:
            raise ValueError("acme_x needs\nacme_y")
        return self


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Raising, "plugin acme: its check of options fails (KeyError)"),
        (Whole, "plugin acme: acme_x needs acme_y"),
    ],
)
def test_a_check_of_its_own_that_fails_is_one_line(
    model: type[BaseModel], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = read(
        {"acme_x": "very-secret", "port": "x"},
        loaded_with(monkeypatch, extensions=[a_detector("acme", model)]).options,
    )
    assert set(loaded.problems) == {"--port 'x': give a port from 0 to 65535", line}


def test_a_check_that_fails_when_the_extension_is_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = loaded_with(monkeypatch, extensions=[a_detector("acme", Raising)])
    with pytest.raises(PluginError, match="plugin acme: acme cannot be made") as caught:
        Catalogue(given={"acme_x": "very-secret"}).make(catalogue.system_detectors["acme"], HOST)
    assert "very-secret" not in str(caught.value)


# Broken plugins -----------------------------------------------------------------------------------------


def a_model(name: str = "acme_x", default: Any = "", option: Option | None = None) -> type[BaseModel]:
    return create_model("Model", **{name: (Annotated[str, option or Option()], default)})  # type: ignore[no-any-return, call-overload]


UNUSABLE = {
    "an option of the core": (a_model("port"), "'port' is one of GPUStack already; give it another name"),
    "a short flag of the core": (
        a_model(option=Option(short="-t")),
        "short flag -t is that of --token of GPUStack",
    ),
    "a variable of the core": (a_model(option=Option(variable="GPUSTACK_PORT")), "that of port of GPUStack"),
    "another variable of the core": (a_model(option=Option(also="HF_TOKEN")), "that of huggingface_token"),
    "a variable of the command line": (a_model("api_key"), "of the command line itself"),
    "a flag of commands": (a_model("help"), "of the command line itself"),
    "a field of the core that is no option": (a_model("plugins"), "of the command line itself"),
    "a name that click would change": (a_model("acmeURL"), "is no flag; use a-z, 0-9 and _"),
    "a short flag that is none": (a_model(option=Option(short="x")), "the short flag 'x'"),
    "the short flag of the help": (a_model(option=Option(short="-h")), "and not -h"),
    "a group that is none": (a_model(option=Option(group="Acme")), "the group 'Acme'"),  # type: ignore[arg-type]
    "a successor that is none": (a_model(option=Option(successor="acme_y")), "is 'acme_y', which is none"),
    "a default that raises": (
        create_model("Model", acme_x=(str, Field(default_factory=lambda: 1 / 0))),
        "ZeroDivisionError",
    ),
    "a default that ends the program": (
        create_model("Model", acme_x=(str, Field(default_factory=lambda: sys.exit(3)))),
        "SystemExit: 3",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_options_that_cannot_be_are_a_failure_and_the_rest_works(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = UNUSABLE[what]
    catalogue = loaded_with(monkeypatch, model, Needy)
    line = failure(catalogue)
    assert line.startswith("plugin acme (")
    assert "failed at add: " in line
    assert words in line
    assert set(catalogue.options) == {*CORE, *Needy.model_fields}
    command = GroupedCommand("start", params=click_options(catalogue.options))
    assert CliRunner().invoke(command, ["--help"]).exit_code == 0


def test_an_extension_with_options_that_cannot_be_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = a_detector("bad", a_model("port")), a_detector("good", Needy)
    catalogue = loaded_with(monkeypatch, extensions=[bad, good])
    assert "failed at add: Model: its option 'port'" in failure(catalogue)
    assert list(catalogue.system_detectors) == ["good"]


def test_two_plugins_with_one_option_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = create_model("Other", acme_retries=(int, 4))
    points = [a_plugin(monkeypatch, "zeta", other), a_plugin(monkeypatch, "acme", AcmeSettings)]
    catalogue = load_catalogue(points)
    line = failure(catalogue)
    assert line.startswith("plugin zeta (")
    assert "'acme_retries' is one of plugin acme already" in line
    assert catalogue.options["acme_retries"].default == 3


def test_two_plugins_with_one_short_flag_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = a_model("zeta_x", option=Option(short="-a"))
    points = [a_plugin(monkeypatch, "zeta", other), a_plugin(monkeypatch, "acme", AcmeSettings)]
    line = failure(load_catalogue(points))
    assert line.startswith("plugin zeta (")
    assert "its short flag -a is that of --acme-url of plugin acme" in line


@pytest.mark.parametrize(
    ("answer", "stage", "words"),
    [
        (None, "collect", "register_settings returned None"),
        ("rubbish", "collect", "register_settings returned 'rubbish'"),
        (AcmeSettings, "collect", "register_settings returned <class"),
        ([AcmeSettings()], "validate", "which is no pydantic model"),
        ([int], "validate", "register_settings returned <class 'int'>, which is no pydantic model"),
        ([None], "validate", "register_settings returned None, which is no pydantic model"),
        (1 / 3, "collect", "register_settings returned 0.33"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(
    answer: object, stage: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = loaded_with(monkeypatch, answer=lambda: answer, extensions=[a_detector("fine", Needy)])
    line = failure(catalogue)
    assert f"failed at {stage}: " in line
    assert words in line
    assert "fine" in catalogue.system_detectors


def test_a_hook_that_raises_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> object:
        sys.exit(3)

    assert "failed at collect: SystemExit: 3" in failure(loaded_with(monkeypatch, answer=raises))


def test_models_that_share_a_field_have_one_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class One(Needy):
        one_x: str = ""

    class Two(Needy):
        two_x: str = ""

    catalogue = loaded_with(monkeypatch, One, extensions=[a_detector("one", One), a_detector("two", Two)])
    assert not catalogue.failures
    assert set(catalogue.options) - set(CORE) == {"needy_key", "needy_count", "one_x", "two_x"}
    (line,) = read({"needy_count": "x"}, catalogue.options).problems
    assert line == "--needy-count 'x': give a whole number"
    given = Catalogue(given=read({"needy_key": "k"}, catalogue.options).checked().plugins)
    for name in ("one", "two"):
        assert given.make(catalogue.system_detectors[name], HOST).settings.needy_key == "k"


def test_models_that_differ_in_a_field_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    other = create_model("Other", needy_count=(int, 2))
    assert "'needy_count' is one of plugin acme already" in failure(loaded_with(monkeypatch, Needy, other))


# Odd types ----------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Odd(BaseModel):
    """Fields of all kinds that somebody may write."""

    odd_colour: Colour = Colour.RED
    odd_wait: timedelta = timedelta(seconds=5)
    odd_password: SecretStr = SecretStr("very-secret")
    odd_set: set[str] = {"a"}
    odd_paths: list[Path] = [Path("/x")]
    odd_list: list = []  # type: ignore[type-arg]
    odd_inner: Needy = Needy(needy_key="k")
    odd_any: Any = None
    odd_object: object = 1j
    odd_maybe: bool | None = None
    odd_alias: str = Field("", alias="oddAlias")
    odd_text: str = "a: b # c\nd"


def test_fields_of_any_type_are_shown_and_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    options = loaded_with(monkeypatch, Odd).options
    loaded = read({}, options)
    assert not loaded.problems
    rows = {row["name"]: row["value"] for row in shown(loaded) if row["plugin"]}
    assert set(rows) == set(Odd.model_fields)
    assert (rows["odd_colour"], rows["odd_password"], rows["odd_set"]) == ("red", HIDDEN, ["a"])
    text = str(described(loaded)) + reference.example(options) + reference.page(options)
    text += str(reference.schema(options)) + str([each.default_shown for each in options.values()])
    assert "very-secret" not in text


def test_values_of_odd_types_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = loaded_with(monkeypatch, extensions=[a_detector("odd", Odd)])
    flags = {
        "odd_colour": "blue",
        "odd_wait": "00:00:07",
        "odd_password": "very-secret-too",
        "odd_set": ["b,c"],
        "odd_paths": "/y",
        "odd_inner": '{"needy_key": "z"}',
        "odd_maybe": "off",
        "odd_alias": "x",
    }
    loaded = read(flags, catalogue.options)
    assert any(line.startswith("--odd-password shows in the list of processes") for line in loaded.warnings)
    assert "very-secret-too" not in str(shown(loaded))
    found = described(loaded)["plugins"]
    made = Catalogue(given=found).make(catalogue.system_detectors["odd"], HOST).settings
    assert made.model_dump() == Odd().model_dump() | {
        "odd_colour": Colour.BLUE,
        "odd_wait": timedelta(seconds=7),
        "odd_password": SecretStr("very-secret-too"),
        "odd_set": {"b", "c"},
        "odd_paths": [Path("/y")],
        "odd_inner": {"needy_key": "z", "needy_count": 1},
        "odd_maybe": False,
        "odd_alias": "x",
    }
