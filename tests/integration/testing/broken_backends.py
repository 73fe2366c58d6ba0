"""Backends that break their contract, each in one way; ``caught_by`` is the test that is to say so."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from gpustack.plugin import (
    ContainerImage,
    InferenceBackend,
    LaunchPlan,
    ModelFacts,
    NoSettings,
    PipxPackage,
    Probe,
    Refused,
    ReleaseBinary,
    ResourceClaim,
    Suggestion,
    TryAgain,
    Verdict,
)
from gpustack.testing import InferenceBackendSuite
from gpustack.testing.suites.samples import a_model


class Good(InferenceBackend[NoSettings]):
    name = "good"
    settings_type: ClassVar[type[BaseModel]] = NoSettings
    default_version = "1.0"

    def accepts(self, model, devices):
        return Verdict.yes() if model.format == "gguf" else Verdict.no("good reads GGUF files only")

    def estimate(self, request):
        gpus = len(request.devices)
        size = request.model.weight_bytes + 100
        return ResourceClaim(ram=0 if gpus else size, vram=size if gpus else 0, gpus=gpus)

    def artifact(self, version, platform):
        return PipxPackage(package="good-engine", version=version, command="good-engine")

    def launch(self, request):
        return LaunchPlan(
            argv=(
                request.command,
                "--model",
                request.model_path,
                f"--port={request.port}",
                *request.parameters,
            )
        )


class TestGood(InferenceBackendSuite):
    extension = Good
    caught_by = ""


def broken(test: str, **members: Any) -> type[InferenceBackendSuite]:
    """Return the suite of a good backend but for ``members``; those of the suite itself begin with ``suite_``."""
    suite = {name.removeprefix("suite_"): each for name, each in members.items() if name.startswith("suite_")}
    own = {name: each for name, each in members.items() if not name.startswith("suite_")}
    return type(
        "Broken",
        (InferenceBackendSuite,),
        {"extension": type("Broken", (Good,), own), "caught_by": test, **suite, "__module__": __name__},
    )


class Abstract(InferenceBackend[NoSettings]):
    name = "abstract"
    settings_type = NoSettings
    default_version = "1.0"


class Unnamed(Good):
    name = "Not A Name"


class Needy(BaseModel):
    data_dir: str = ""


async def in_the_wrong_colour(self, model, devices):
    return Verdict.yes()


class TestAbstract(InferenceBackendSuite):
    extension = Abstract
    caught_by = "test_the_class_is_one_that_gpustack_loads"


class TestUnnamed(InferenceBackendSuite):
    extension = Unnamed
    caught_by = "test_the_class_is_one_that_gpustack_loads"


LOADS = "test_the_class_is_one_that_gpustack_loads"
TestWrongColour = broken(LOADS, accepts=in_the_wrong_colour)
TestNoVersion = broken(LOADS, default_version="")
TestTakenOption = broken("test_its_settings_can_be_options", settings_type=Needy)


# Life ---------------------------------------------------------------------------------------------------------


class OpensWhenMade(Good):
    def __init__(self, settings, host):
        super().__init__(settings, host)
        (host.data_dir / "cache").mkdir()


class StartsAThreadWhenMade(Good):
    def __init__(self, settings, host):
        super().__init__(settings, host)
        threading.Thread(target=threading.Event().wait, args=(0.3,), daemon=True).start()


class OnlyOnce(Good):
    lives = 0

    async def __aenter__(self):
        OnlyOnce.lives += 1
        if OnlyOnce.lives > 1:
            raise RuntimeError("already open")
        return self


class OneAtATime(Good):
    open = False

    async def __aenter__(self):
        if OneAtATime.open:
            raise RuntimeError("there is another")
        OneAtATime.open = True
        return self

    async def __aexit__(self, *error):
        OneAtATime.open = False


async def enters_without_itself(self):
    return None


async def hides_errors(self, *error):
    return True


async def leaves_a_task(self):
    import asyncio

    self.task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
    return self


class LeavesAThread(Good):
    async def __aenter__(self):
        self.end = threading.Event()
        threading.Thread(target=self.end.wait, args=(5,), daemon=True, name="forgotten").start()
        return self


def suite(cls: type, test: str, **more: Any) -> type:
    return type(
        "Broken",
        (InferenceBackendSuite,),
        {"extension": cls, "caught_by": test, **more, "__module__": __name__},
    )


TestOpensWhenMade = suite(OpensWhenMade, "test_making_it_touches_nothing")
TestStartsAThreadWhenMade = suite(StartsAThreadWhenMade, "test_making_it_touches_nothing")
TestOnlyOnce = suite(OnlyOnce, "test_it_can_be_entered_and_left_again_and_again")
TestOneAtATime = suite(OneAtATime, "test_two_of_it_live_side_by_side")
TestEntersWithoutItself = broken("test_entering_gives_the_object_itself", __aenter__=enters_without_itself)
TestHidesErrors = broken("test_leaving_hides_nobody_elses_error", __aexit__=hides_errors)
TestLeavesATask = broken("test_nothing_of_it_is_left_running", __aenter__=leaves_a_task)
TestLeavesAThread = suite(LeavesAThread, "test_nothing_of_it_is_left_running")

# accepts ------------------------------------------------------------------------------------------------------

ACCEPTS = "test_accepts_answers_for_every_model_and_machine"


def raises_for_unknown(self, model, devices):
    return {"gguf": Verdict.yes(), "safetensors": Verdict.no("no")}[model.format]


def needs_a_device(self, model, devices):
    return Verdict.yes() if devices[0].type == "cuda" else Verdict.no("needs CUDA")


def looks_at_the_file(self, model, devices):
    return Verdict.yes() if Path(model.path).is_file() else Verdict.no("it is not there")


def opens_a_file(self, model, devices):
    with contextlib.suppress(OSError):
        Path("/proc/meminfo").read_text()
    return Verdict.yes()


def asks_the_network(self, model, devices):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)
    return Verdict.yes()


def runs_a_program(self, model, devices):
    with contextlib.suppress(OSError):
        subprocess.run(["nvidia-smi"], check=False)
    return Verdict.yes()


def lists_a_folder(self, model, devices):
    with contextlib.suppress(OSError):
        os.scandir("/dev")
    return Verdict.yes()


class Counts(Good):
    calls = 0

    def accepts(self, model, devices):
        self.calls += 1
        return Verdict.no(f"asked {self.calls} times")


class Remembers(Good):
    last = ""

    def accepts(self, model, devices):
        before, self.last = self.last, model.path
        if before in ("", self.last):
            return Verdict.yes()
        return Verdict.no("not twice") if self.last.startswith("/models/bare") else Verdict.yes()


class ChangesWhenEntered(Good):
    open = False

    async def __aenter__(self):
        self.open = True
        return self

    def accepts(self, model, devices):
        return Verdict.no("already open") if self.open else super().accepts(model, devices)


TestRaisesForUnknown = broken(ACCEPTS, accepts=raises_for_unknown)
TestNeedsADevice = broken(ACCEPTS, accepts=needs_a_device)
TestSaysTrue = broken(ACCEPTS, accepts=lambda self, model, devices: True)
TestNoReason = broken(ACCEPTS, accepts=lambda self, model, devices: Verdict(ok=model.format == "gguf"))
TestReasonOfTwoLines = broken(ACCEPTS, accepts=lambda self, model, devices: Verdict.no("no\nreally"))
TestRefusesByRaising = broken(
    ACCEPTS, accepts=lambda self, model, devices: (_ for _ in ()).throw(Refused("no"))
)
TestLooksAtTheFile = broken(ACCEPTS, accepts=looks_at_the_file)
TestOpensAFile = broken(ACCEPTS, accepts=opens_a_file)
TestAsksTheNetwork = broken(ACCEPTS, accepts=asks_the_network)
TestRunsAProgram = broken(ACCEPTS, accepts=runs_a_program)
TestListsAFolder = broken(ACCEPTS, accepts=lists_a_folder)
TestCounts = suite(Counts, ACCEPTS)
TestAcceptsNothing = broken(
    "test_accepts_some_model", accepts=lambda self, model, devices: Verdict.no("never")
)
TestRefusesWhatItMust = broken(
    "test_accepts_the_models_it_must", suite_must_accept=(a_model(format="safetensors"),)
)
TestRemembers = suite(Remembers, "test_accepts_says_the_same_in_whatever_order_it_is_asked")
TestChangesWhenEntered = suite(ChangesWhenEntered, "test_it_answers_when_entered_as_before")

# estimate -----------------------------------------------------------------------------------------------------

CLAIM = "test_estimate_is_memory_that_can_be_reserved"


def shrinks(self, request):
    return ResourceClaim(ram=max(1, (1 << 60) - request.model.weight_bytes))


def shrinks_with_context(self, request):
    return ResourceClaim(ram=(1 << 40) - request.model.context_length)


def shrinks_with_the_parameter(self, request):
    tokens = next((int(each.partition("=")[2]) for each in request.parameters), 0)
    return ResourceClaim(ram=(1 << 40) - tokens)


def parses_badly(self, request):
    for each in request.parameters:
        int(each.partition("=")[2])
    return ResourceClaim(ram=1)


TestFloats = broken(CLAIM, estimate=lambda self, request: ResourceClaim(ram=request.model.weight_bytes * 1.2))
TestNegative = broken(CLAIM, estimate=lambda self, request: ResourceClaim(ram=-1))
TestNothing = broken(CLAIM, estimate=lambda self, request: ResourceClaim(ram=0))
TestGpusWithoutMemory = broken(
    CLAIM, estimate=lambda self, request: ResourceClaim(ram=1, gpus=len(request.devices))
)
TestTooManyGpus = broken(CLAIM, estimate=lambda self, request: ResourceClaim(ram=1, vram=1, gpus=99))
TestNumber = broken(CLAIM, estimate=lambda self, request: 5)
TestNotYet = broken(CLAIM, estimate=lambda self, request: (_ for _ in ()).throw(TryAgain("later", after=1)))
TestVramWithoutDevices = broken(
    "test_estimate_without_devices_is_ram_alone",
    estimate=lambda self, request: ResourceClaim(ram=1, vram=1, gpus=1),
)
TestShrinks = broken("test_estimate_never_shrinks_when_the_model_grows", estimate=shrinks)
TestShrinksWithContext = broken(
    "test_estimate_never_shrinks_when_the_model_grows", estimate=shrinks_with_context
)
TestShrinksWithTheParameter = broken(
    "test_estimate_never_shrinks_when_the_user_asks_for_more_context",
    estimate=shrinks_with_the_parameter,
    suite_context_parameter="--ctx={}",
)
TestParsesBadly = broken("test_strange_parameters_are_answered_or_refused", estimate=parses_badly)
TestTakesAll = broken("test_parameters_that_never_work_are_refused", suite_refused_parameters=(("--no",),))
TestTakesNone = broken(
    "test_parameters_that_work_are_taken",
    estimate=lambda self, request: (_ for _ in ()).throw(Refused("no")),
    suite_parameters=(("--yes",),),
)

# artifact -----------------------------------------------------------------------------------------------------

ARTIFACT = "test_artifact_is_something_that_a_worker_can_fetch"


def a_package(**more: Any) -> Any:
    return lambda self, version, platform: PipxPackage(
        **{"package": "good-engine", "version": version, "command": "good-engine", **more}
    )


def random_package(self, version, platform):
    return PipxPackage(package="good-engine", version=version, command=f"good-{random.random()}")


def raises_key_error(self, version, platform):
    return {"linux": PipxPackage(package="a", version=version, command="a")}.get(platform.system) or {}[
        platform.system
    ]


def parses_version(self, version, platform):
    int(version.split(".")[0])
    return PipxPackage(package="a", version=version, command="a")


TestRandomArtifact = broken(ARTIFACT, artifact=random_package)
TestText = broken(ARTIFACT, artifact=lambda self, version, platform: "good-engine==1.0")
TestAnotherVersion = broken(ARTIFACT, artifact=a_package(version="2.0"))
TestLatest = broken("test_artifact_refuses_or_answers_for_any_version", artifact=a_package(version="1.0"))
TestCommandIsAPath = broken(ARTIFACT, artifact=a_package(command="/usr/bin/engine"))
TestNoWheel = broken(ARTIFACT, artifact=a_package(wheel=b"this is none", wheel_name="a-1.0-py3-none-any.whl"))
TestUnproven = broken(ARTIFACT, artifact=a_package(verify=()))
TestRegistry = broken(
    ARTIFACT,
    artifact=lambda self, version, platform: ContainerImage(image="ghcr.io/good/engine", version=version),
)
TestOutOfTheArchive = broken(
    ARTIFACT,
    artifact=lambda self, version, platform: ReleaseBinary(
        url="https://e.example/a.tgz", version=version, executable="../sh"
    ),
)
TestRefusesItsDefault = broken(
    "test_artifact_of_the_default_version_exists",
    artifact=lambda self, version, platform: (_ for _ in ()).throw(Refused("there is none")),
)
TestPlatformKeyError = broken("test_artifact_refuses_or_answers_on_any_platform", artifact=raises_key_error)
TestVersionValueError = broken("test_artifact_refuses_or_answers_for_any_version", artifact=parses_version)
TestTakesAnyVersion = broken("test_artifact_refuses_what_does_not_exist", suite_refused_versions=("0",))

# launch -------------------------------------------------------------------------------------------------------

STARTS = "test_launch_is_a_process_that_can_be_started"


def plan(*argv: str, **more: Any) -> Any:
    """Return a launch that puts the request into ``argv`` by ``str.format``."""
    return lambda self, r: LaunchPlan(argv=(*(each.format(r=r) for each in argv), *r.parameters), **more)


WHOLE = ("{r.command}", "{r.model_path}", "{r.port}")
REPEAT = "test_launch_can_be_repeated_on_another_port"


class Grows(Good):
    starts = 0

    def launch(self, request):
        self.starts += 1
        return LaunchPlan(
            argv=(request.command, request.model_path, str(request.port), f"--start={self.starts}")
        )


TestNumberInArgv = broken(STARTS, launch=lambda self, r: LaunchPlan(argv=(r.command, r.model_path, r.port)))
TestList = broken(STARTS, launch=lambda self, r: LaunchPlan(argv=[r.command, r.model_path, str(r.port)]))
TestAnotherProgram = broken(STARTS, launch=plan("python", "{r.model_path}", "{r.port}"))
TestNumberInEnv = broken(STARTS, launch=plan(*WHOLE, env={"THREADS": 4}))
TestRelativeFolder = broken(STARTS, launch=plan(*WHOLE, cwd="models"))
TestProbeWithoutSlash = broken(STARTS, launch=plan(*WHOLE, ready=Probe(path="health")))
TestOwnPort = broken(
    "test_launch_listens_where_it_is_told", launch=plan("{r.command}", "{r.model_path}", "8000")
)
TestOpenToAll = broken("test_launch_listens_where_it_is_told", launch=plan(*WHOLE, "--host", "0.0.0.0"))
TestNoModel = broken("test_launch_names_the_model", launch=plan("{r.command}", "{r.port}"))
TestSplitsThePath = broken(
    "test_launch_names_the_model",
    launch=lambda self, r: LaunchPlan(argv=tuple(f"{r.command} {r.model_path} {r.port}".split())),
)
TestGrows = suite(Grows, REPEAT)
TestEveryOtherPort = broken(
    REPEAT, launch=lambda self, r: plan(*WHOLE, "--odd" if r.port % 4 == 3 else "--even")(self, r)
)
TestDropsParameters = broken(
    "test_a_users_parameter_reaches_the_engine_or_is_refused",
    launch=lambda self, r: LaunchPlan(argv=(r.command, r.model_path, str(r.port))),
)

# The rest -----------------------------------------------------------------------------------------------------


class NotTwoAtOnce(Good):
    busy = False

    def accepts(self, model: ModelFacts, devices):
        if self.busy:
            return Verdict.no("busy")
        self.busy = True
        threading.Event().wait(0.001)
        self.busy = False
        return super().accepts(model, devices)


TestMetricsOfNumbers = broken("test_metrics_are_names_for_names", metrics=lambda self: {"good:tokens": 5})
TestMetricsList = broken("test_metrics_are_names_for_names", metrics=lambda self: ["tokens"])
TestNotTwoAtOnce = suite(NotTwoAtOnce, "test_several_threads_may_ask_at_once")


class Spans(Good):
    def members(self, request, workers):
        return [ResourceClaim(ram=0, vram=1, gpus=len(devices)) for devices in workers]

    def launch_member(self, request):
        return LaunchPlan(
            argv=(request.command, request.model_path, str(request.members[request.member].number))
        )


class TestSpans(InferenceBackendSuite):
    extension = Spans
    caught_by = ""


TestSpansHalfway = broken("test_members_of_an_instance_each_have_a_plan", launch_member=Spans.launch_member)
TestClaimsForOne = broken(
    "test_members_of_an_instance_each_have_a_plan",
    launch_member=Spans.launch_member,
    members=lambda self, request, workers: [ResourceClaim(ram=0, vram=1)],
)
TestPlansText = broken(
    "test_members_of_an_instance_each_have_a_plan",
    launch_member=lambda self, request: "engine",
    members=Spans.members,
)


def louder(self, request):
    return [[Suggestion(what="more of it", parameters=(*request.parameters, "--more"))]]


TestSuggestsTheSame = broken("test_what_is_suggested_needs_less_memory", suggestions=louder)
TestSuggestsText = broken(
    "test_what_is_suggested_needs_less_memory", suggestions=lambda self, request: [["--less"]]
)
