"""Plugins are found in really installed distributions; a broken one harms nobody but itself."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gpustack.extensions import Catalogue, load_catalogue
from gpustack.plugin import API_VERSION, hookspecs
from gpustack.settings.load import read

GOOD = """
from gpustack.plugin import InferenceBackend, NoSettings, ResourceClaim, Verdict, hookimpl

class {cls}(InferenceBackend[NoSettings]):
    name = "{name}"
    settings_type = NoSettings
    default_version = "1.0"

    def accepts(self, model, devices):
        return Verdict.yes()

    def estimate(self, request):
        return ResourceClaim(ram=1)

    def artifact(self, version, platform):
        raise NotImplementedError

    def launch(self, request):
        raise NotImplementedError

@hookimpl
def register_inference_backends():
    return [{cls}]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution as a wheel would be: a module, metadata and its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def _install(name: str, source: str | None, *, distribution: str = "") -> None:
        distribution = distribution or f"{name}_dist"
        info = tmp_path / f"{distribution}-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[gpustack]\n{name} = {distribution}_module\n")
        if source is not None:
            (tmp_path / f"{distribution}_module.py").write_text(textwrap.dedent(source))

    yield _install
    for module in set(sys.modules) - before:
        if module.endswith("_dist_module") or module in {"left_module", "right_module"}:
            del sys.modules[module]


def backend(name: str, cls: str = "Fine") -> str:
    return GOOD.format(name=name, cls=cls)


def failures(catalogue: Catalogue, plugin: str) -> list[tuple[str, str]]:
    return [(each.stage, each.error) for each in catalogue.failures if each.plugin == plugin]


def test_a_class_is_found_with_where_it_comes_from(install: Install) -> None:
    install("t_fine", backend("t-fine"))

    found = load_catalogue().backends["t-fine"]

    assert (found.name, found.plugin, found.distribution, found.version) == (
        "t-fine",
        "t_fine",
        "t_fine_dist",
        "1.2.3",
    )


BROKEN = {
    "the module is missing": (None, "import", "No module named 't_bad_dist_module'"),
    "the import raises": (
        "raise RuntimeError('no driver\\nsecond line')",
        "import",
        "RuntimeError: no driver; second line",
    ),
    "the import ends the program": ("import sys; sys.exit(3)", "import", "SystemExit: 3"),
    "the import raises what is no Exception": (
        "class Panic(BaseException): pass\nraise Panic('the extension module panicked')",
        "import",
        "Panic: the extension module panicked",
    ),
    "the import raises what cannot be shown": (
        "class Shy(Exception):\n  def __str__(self): raise RuntimeError\nraise Shy",
        "import",
        "Shy",
    ),
    "a hook takes arguments it cannot get": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_inference_backends(config): return []",
        "register",
        "its register_inference_backends takes arguments; a hook takes none",
    ),
    "a hook is not marked": (
        backend("t-bad").replace("@hookimpl\n", ""),
        "check",
        "register_inference_backends is not marked with @hookimpl, so nothing of it is used",
    ),
    "it has no hook at all": ("answer = 42", "check", "it has no hook; mark a function such as register_"),
    "a hook returns what shows itself at length": (
        (
            "from gpustack.plugin import hookimpl\nclass Long:\n  def __repr__(self): return 'x\\n' * 9999\n"
            "@hookimpl\ndef register_inference_backends(): return Long()"
        ),
        "collect",
        "return a list of classes",
    ),
    "a hook is misspelt": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_inference_backend(): return []",
        "check",
        "register_inference_backend is no hook; the hooks are register_inference_backends",
    ),
    "a hook raises": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_inference_backends(): return 1 / 0",
        "collect",
        "ZeroDivisionError: division by zero",
    ),
    "a hook returns None": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_inference_backends(): pass",
        "collect",
        "returned None",
    ),
    "a hook returns one class": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_inference_backends(): return int",
        "collect",
        "return a list of classes",
    ),
    "a hook is a coroutine": (
        "from gpustack.plugin import hookimpl\n@hookimpl\nasync def register_inference_backends(): return []",
        "collect",
        "`async def`",
    ),
    "a hook yields and raises": (
        "from gpustack.plugin import hookimpl\n@hookimpl\ndef register_gpu_detectors():\n yield int\n raise KeyError('x')",
        "collect",
        "KeyError: 'x'",
    ),
    "an instance instead of a class": (
        backend("t-bad").replace("[Fine]", "[Fine(None, None)]"),
        "validate",
        "is not a class",
    ),
    "a class of another kind": (
        backend("t-bad").replace("[Fine]", "[dict]"),
        "validate",
        "dict is not a subclass of InferenceBackend",
    ),
    "a half-implemented class": (
        backend("t-bad").replace("def launch", "def _launch").replace("def estimate", "def _estimate"),
        "validate",
        "Fine does not implement estimate, launch",
    ),
    "a class without a name": (
        backend("t-bad").replace('name = "t-bad"', ""),
        "validate",
        "has the name None",
    ),
    "a class with a name nobody can type": (backend("T Bad"), "validate", "has the name 'T Bad'"),
    "a class without settings": (
        backend("t-bad").replace("settings_type = NoSettings", ""),
        "validate",
        "has no settings_type",
    ),
    "a class without a version": (
        backend("t-bad").replace('default_version = "1.0"', ""),
        "validate",
        "has no default_version",
    ),
    "an API of the future": (
        'plugin_api_version = "1.99"\n' + backend("t-bad"),
        "check",
        "it needs version 1.99 of the plugin API, and this GPUStack has 1.0; upgrade GPUStack",
    ),
    "an API of the past": (
        'plugin_api_version = "0.9"\n' + backend("t-bad"),
        "check",
        "install a newer version of it",
    ),
    "an API version that is none": (
        'plugin_api_version = "soon"\n' + backend("t-bad"),
        "check",
        "its plugin_api_version is 'soon'",
    ),
    "a method that nobody would await": (
        backend("t-bad").replace("def accepts", "async def accepts"),
        "validate",
        "has accepts as `async def`",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_a_named_failure_and_its_neighbours_work(install: Install, kind: str) -> None:
    source, stage, words = BROKEN[kind]
    install("t_bad", source)
    install("t_after", backend("t-after"))
    install("t_a_before", backend("t-before"))

    catalogue = load_catalogue()

    ((failed_at, error),) = failures(catalogue, "t_bad")
    assert failed_at == stage
    assert words in error
    assert "\n" not in error
    assert len(error) < 700
    assert {"t-before", "t-after"} <= set(catalogue.backends)
    assert "t-bad" not in catalogue.backends
    assert catalogue.plugins["t_bad"].state == "failed"
    assert words in catalogue.plugins["t_bad"].reason
    assert (catalogue.plugins["t_after"].state, catalogue.plugins["t_after"].reason) == ("loaded", "")


def test_what_is_whole_of_a_half_broken_plugin_is_used(install: Install) -> None:
    source = backend("t-whole", "Whole") + "\nclass Half(InferenceBackend): name = 't-half'\n"
    install("t_mixed", source.replace("[Whole]", "[Half, Whole]"))

    catalogue = load_catalogue()

    assert "t-whole" in catalogue.backends
    assert [stage for stage, _ in failures(catalogue, "t_mixed")] == ["validate"]
    assert catalogue.plugins["t_mixed"].state == "partly"
    assert "Half" in catalogue.plugins["t_mixed"].reason


def test_two_plugins_claiming_one_name_are_both_named(install: Install) -> None:
    install("t_two", backend("t-same"))
    install("t_one", backend("t-same"))

    catalogue = load_catalogue()

    assert catalogue.backends["t-same"].plugin == "t_one"
    assert failures(catalogue, "t_one") == []
    ((stage, error),) = failures(catalogue, "t_two")
    assert stage == "add"
    assert "t_one (t_one_dist 1.2.3)" in error
    assert "t_two (t_two_dist 1.2.3)" in error


def test_nobody_takes_a_name_of_ours(install: Install) -> None:
    install("a_thief", backend("llama-cpp"))

    catalogue = load_catalogue()

    assert catalogue.backends["llama-cpp"].distribution == "gpustack-backends"
    ((_, error),) = failures(catalogue, "a_thief")
    assert "'llama-cpp' is claimed by two plugins: backends (gpustack-backends" in error


def test_what_a_removal_has_left_is_a_named_failure(install: Install, tmp_path: Path) -> None:
    install("t_torn", None)
    (tmp_path / "t_torn_dist-1.2.3.dist-info" / "METADATA").unlink()

    found = load_catalogue().plugins["t_torn"]

    assert (found.state, found.distribution, found.version) == ("failed", "", "")


def test_an_entry_point_that_is_none_is_named(install: Install, tmp_path: Path) -> None:
    install("t_typo", "")
    points = tmp_path / "t_typo_dist-1.2.3.dist-info" / "entry_points.txt"
    points.write_text("[gpustack]\nt_typo = not a module!\n")

    ((stage, error),) = failures(load_catalogue(), "t_typo")

    assert (stage, error) == (
        "import",
        "its entry point is 'not a module!'; name a module, as in 'gpustack_acme'",
    )


def test_one_that_takes_long_to_load_is_named_meanwhile(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gpustack.extensions.loader._SLOW", 0.1)
    install("t_slow", "import time\ntime.sleep(0.4)\n" + backend("t-slow"))

    assert "t-slow" in load_catalogue().backends
    assert "plugin t_slow (t_slow_dist) is still loading; GPUSTACK_PLUGINS_BLOCK=t_slow leaves it out" in [
        each.message for each in caplog.records
    ]


def test_whose_option_an_unknown_one_may_be_is_said(install: Install, tmp_path: Path) -> None:
    install("t_gone", "import t_no_such_module")
    (tmp_path / "config.yaml").write_text("qqqqqq: http://127.0.0.1\n")

    loaded = read({"config_file": str(tmp_path / "config.yaml")}, load_catalogue().options)

    (line,) = loaded.problems
    assert line.startswith("'qqqqqq'")
    assert line.endswith("is not an option; a plugin that is not loaded may have it: t_gone")


def test_two_distributions_with_one_plugin_name_are_told_apart(install: Install) -> None:
    install("t_same", backend("t-same"), distribution="right")
    install("t_same", backend("t-same"), distribution="left")

    catalogue = load_catalogue()

    assert catalogue.backends["t-same"].distribution == "left"
    ((_, error),) = failures(catalogue, "t_same")
    assert "left 1.2.3" in error
    assert "right 1.2.3" in error


def test_a_blocked_plugin_is_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("t_bad", "raise SystemExit('imported')")
    install("t_fine", backend("t-fine"))
    monkeypatch.setenv("GPUSTACK_PLUGINS_BLOCK", "t_bad, other")

    catalogue = load_catalogue()

    assert failures(catalogue, "t_bad") == []
    assert "t-fine" in catalogue.backends
    assert catalogue.plugins["t_bad"].state == "blocked"
    assert "t_bad_dist_module" not in sys.modules


def test_the_version_of_the_api_that_a_plugin_needs_may_be_ours(install: Install) -> None:
    install("t_fine", f"plugin_api_version = {API_VERSION!r}\n" + backend("t-fine"))

    assert "t-fine" in load_catalogue().backends


def test_a_deprecated_hook_is_told_and_works(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook is deprecated now: pluggy's own mark makes one so for a moment."""
    mark = {**hookspecs.register_inference_backends.gpustack_spec}  # type: ignore[attr-defined]
    mark["warn_on_impl"] = DeprecationWarning("register_inference_backends goes with 2.0; use another")
    monkeypatch.setattr(hookspecs.register_inference_backends, "gpustack_spec", mark)
    install("t_old", backend("t-old"))

    catalogue = load_catalogue()

    assert "t-old" in catalogue.backends
    assert catalogue.plugins["t_old"].state == "loaded"
    assert "goes with 2.0; use another" in catalogue.plugins["t_old"].reason


def test_loading_twice_gives_the_same(install: Install) -> None:
    install("t_fine", backend("t-fine"))

    assert load_catalogue() == load_catalogue()
