"""Extensions of the other kinds that break their contract, each in one way; ``caught_by`` is the test that is to say so."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpustack.plugin import (
    BundledModel,
    DeviceExposure,
    DeviceRequest,
    Filesystem,
    GpuDetector,
    GpuProcess,
    GpuUsage,
    Identity,
    LaunchPlan,
    ModelCard,
    NoSettings,
    Redirect,
    Refused,
    SystemDetector,
    SystemReading,
    TryAgain,
    UsageRecord,
    Verdict,
    WebApp,
)
from gpustack.testing import (
    AuthProviderSuite,
    BundledModelSuite,
    ExtensionSuite,
    GatewaySuite,
    GpuDetectorSuite,
    SystemDetectorSuite,
    WebAppSuite,
)
from gpustack.testing.fakes import a_model
from gpustack.testing.fakes.gateway import FakeGateway
from gpustack.testing.fakes.login import FakeLogin
from gpustack.testing.suites.samples import some_devices


def raises(error: BaseException) -> Any:
    def method(self, *args):
        raise error

    return method


def raises_later(error: BaseException) -> Any:
    async def method(self, *args):
        raise error

    return method


def later(answer: Any) -> Any:
    async def method(self, *args):
        return answer

    return method


def broken(suite: type[ExtensionSuite], good: type, test: str, **members: Any) -> type[ExtensionSuite]:
    cls = type("Broken", (good,), members)
    return type("Broken", (suite,), {"extension": cls, "caught_by": test, "__module__": __name__})


def held(suite: type[ExtensionSuite], good: type) -> type[ExtensionSuite]:
    return type("Good", (suite,), {"extension": good, "caught_by": "", "__module__": __name__})


# GPU detectors ------------------------------------------------------------------------------------------------

DEVICES = some_devices(3, vendor="good")


class GoodGpus(GpuDetector[NoSettings]):
    name = "good"
    settings_type = NoSettings
    vendor = "good"

    def present(self):
        return Verdict.yes()

    async def devices(self):
        return DEVICES

    async def usage(self):
        return {each.uuid: GpuUsage(memory_used=1) for each in DEVICES}

    def expose(self, devices):
        return DeviceExposure(env={"GOOD_DEVICES": ",".join(each.uuid for each in devices)})


def gpus(test: str, **members: Any) -> type[ExtensionSuite]:
    return broken(GpuDetectorSuite, GoodGpus, test, **members)


async def blocks(self):
    time.sleep(1.2)
    return DEVICES


class Shuffles(GoodGpus):
    calls = 0

    async def devices(self):
        Shuffles.calls += 1
        shift = Shuffles.calls % 3
        return [replace(each, uuid=f"GPU-{(each.index + shift) % 3}") for each in DEVICES]

    async def usage(self):
        return {}


def exposes(**env: Any) -> Any:
    return lambda self, devices: DeviceExposure(
        env={name: value(devices) if callable(value) else value for name, value in env.items()}
    )


TestGoodGpus = held(GpuDetectorSuite, GoodGpus)
TestPresentRaises = gpus("test_present_always_answers", present=raises(OSError("no driver")))
TestPresentSaysTrue = gpus("test_present_always_answers", present=lambda self: True)
TestPresentHasNoReason = gpus("test_present_always_answers", present=lambda self: Verdict.no(""))
TestForeignDevices = gpus("test_devices_are_described", devices=later(some_devices(3, vendor="other")))
TestNoMemory = gpus("test_devices_are_described", devices=later([replace(DEVICES[0], memory_total=0)]))
TestNoUuid = gpus("test_devices_are_described", devices=later([replace(DEVICES[0], uuid="")]))
TestDicts = gpus("test_devices_are_described", devices=later([{"uuid": "GPU-0"}]))
TestBlocks = gpus("test_devices_are_described", devices=blocks)
TestSameIndex = gpus(
    "test_devices_can_be_told_apart", devices=later([replace(each, index=0) for each in DEVICES])
)
TestSameUuid = gpus(
    "test_devices_can_be_told_apart", devices=later([replace(each, uuid="GPU") for each in DEVICES])
)
TestUnsorted = gpus("test_devices_come_in_a_fixed_order", devices=later(DEVICES[::-1]))
TestShuffles = type(
    "Broken",
    (GpuDetectorSuite,),
    {"extension": Shuffles, "caught_by": "test_devices_come_in_a_fixed_order", "__module__": __name__},
)
TestUsageByIndex = gpus("test_usage_is_of_devices_that_there_are", usage=later({0: GpuUsage(memory_used=1)}))
TestUsageIsMoreThanAll = gpus(
    "test_usage_can_be", usage=later({DEVICES[0].uuid: GpuUsage(memory_used=1 << 60)})
)
TestUsageOver100 = gpus(
    "test_usage_can_be", usage=later({DEVICES[0].uuid: GpuUsage(memory_used=1, utilization=101)})
)
EXPOSE = "test_expose_shows_exactly_the_chosen_devices"
TestSlicesBesideTheWhole = gpus(
    "test_a_sliced_device_stands_for_its_slices_alone",
    devices=later([DEVICES[0], replace(DEVICES[1], parent_uuid=DEVICES[0].uuid)]),
)
TestFaultIsAText = gpus(
    "test_usage_can_be", usage=later({DEVICES[0].uuid: GpuUsage(memory_used=1, faults="too hot")})
)
TestProcessTwice = gpus(
    "test_processes_are_each_told_once",
    usage=later({DEVICES[0].uuid: GpuUsage(memory_used=1, processes=(GpuProcess(pid=1),) * 2)}),
)
TestProcessIsANumber = gpus(
    "test_processes_are_each_told_once",
    usage=later({DEVICES[0].uuid: GpuUsage(memory_used=1, processes=(1,))}),
)
TestRequestsForNothing = gpus(
    EXPOSE,
    expose=lambda self, devices: DeviceExposure(
        env={"GOOD_DEVICES": ",".join(each.uuid for each in devices)},
        requests=(DeviceRequest(driver="good", ids=("all",)),),
    ),
)
TestExposesAll = gpus(EXPOSE, expose=exposes(GOOD_DEVICES="all"))
TestExposesTheNumber = gpus(EXPOSE, expose=exposes(GOOD_DEVICES=lambda devices: str(len(devices))))
TestExposeRefuses = gpus(EXPOSE, expose=raises(Refused("no")))
TestExposesNumbers = gpus(
    EXPOSE, expose=exposes(GOOD_DEVICES=lambda devices: sum(1 << each.index for each in devices))
)
SAME = "test_expose_says_it_in_the_same_variables"
TestHidesNothing = gpus(
    SAME,
    expose=lambda self, devices: DeviceExposure(
        env={"GOOD": ",".join(each.uuid for each in devices)} if devices else {}
    ),
)

# System detectors ---------------------------------------------------------------------------------------------

READING = SystemReading(cores=2, ram_total=100, ram_used=50)
ROOT = Filesystem(mount_point="/", mount_from="/dev/sda", total=100, used=50, free=50, available=40)


class GoodSystem(SystemDetector[NoSettings]):
    name = "good"
    settings_type = NoSettings

    def present(self):
        return Verdict.yes()

    async def measure(self, paths):
        return replace(READING, filesystems=(ROOT,) if paths else ())


class Shrinks(GoodSystem):
    size = 100

    async def measure(self, paths):
        self.size -= 1
        return replace(READING, ram_total=self.size, filesystems=(ROOT,) if paths else ())


def system(test: str, *filesystems: Filesystem, **figures: Any) -> type[ExtensionSuite]:
    async def measure(self, paths):
        return replace(READING, filesystems=filesystems, **figures)

    return broken(SystemDetectorSuite, GoodSystem, test, measure=measure)


MACHINE, FILESYSTEMS = "test_measures_a_machine_that_can_be", "test_finds_the_file_systems_of_the_paths"
TestGoodSystem = held(SystemDetectorSuite, GoodSystem)
TestNoCore = system(MACHINE, ROOT, cores=0)
TestUsesMoreThanThereIs = system(MACHINE, ROOT, ram_used=101)
TestFloats = system(MACHINE, ROOT, ram_total=99.5)
TestNoFilesystem = system(FILESYSTEMS)
TestElsewhere = system(FILESYSTEMS, replace(ROOT, mount_point="/elsewhere"))
TestNegativeRoom = system(FILESYSTEMS, replace(ROOT, available=-1))
TestTwice = system("test_each_file_system_is_told_once", ROOT, ROOT)
TestUnasked = system("test_no_path_no_file_system", ROOT)
TestShrinks = broken(SystemDetectorSuite, Shrinks, "test_measures_again_and_again")

# Bundled models -----------------------------------------------------------------------------------------------

FOLDER = Path(__file__).parent / "model"
CARD = ModelCard(title="Good", summary="A model of nothing.", categories=("llm",), context_length=2048)


class GoodModel(BundledModel[NoSettings]):
    name = "good"
    settings_type = NoSettings

    def __init__(self, settings, host):
        super().__init__(settings, host)
        self.folder = host.data_dir

    def card(self):
        return CARD

    def path(self):
        folder = self.folder / "model"
        return folder if folder.exists() else a_model(self.folder)


def model(test: str, **members: Any) -> type[ExtensionSuite]:
    return broken(BundledModelSuite, GoodModel, test, **members)


def card(test: str, **figures: Any) -> type[ExtensionSuite]:
    return model(test, card=lambda self: replace(CARD, **figures))


PEOPLE, PATH = "test_the_card_tells_people_what_it_is", "test_the_path_leads_to_files"
SAYS = "test_the_card_says_what_the_files_say"
TestGoodModel = held(BundledModelSuite, GoodModel)
TestNoTitle = card(PEOPLE, title="")
TestLongSummary = card(PEOPLE, summary="a\nb")
TestNoCategory = card(PEOPLE, categories=())
TestOddCategory = card(PEOPLE, categories=("poetry",))
TestNoCard = model(PEOPLE, card=lambda self: {"title": "Good"})
TestHomeless = card("test_the_cards_figures_can_be", home="over there")
TestNegativeParameters = card("test_the_cards_figures_can_be", parameters=-1)
TestRelativePath = model(PATH, path=lambda self: Path("model"))
TestMissingFile = model(PATH, path=lambda self: Path("/nowhere/model.gguf"))
TestTextPath = model(PATH, path=lambda self: "/nowhere")
TestRaisesOsError = model(PATH, path=raises(FileNotFoundError("model")))
TestUnreadable = model("test_a_worker_can_read_the_model", path=lambda self: Path(__file__).resolve())
TestAnotherCategory = card(SAYS, categories=("embedding",))
TestAnotherContext = card(SAYS, context_length=1 << 20)

# Web apps -----------------------------------------------------------------------------------------------------


class GoodPages(WebApp[NoSettings]):
    name = "good"
    settings_type = NoSettings
    path = "/good"

    def __init__(self, settings, host):
        super().__init__(settings, host)
        self.folder = host.data_dir

    def files(self):
        (self.folder / "index.html").write_text("<p>good")
        return self.folder


def links_out(self):
    (self.folder / "index.html").write_text("<p>good")
    (self.folder / "passwords").symlink_to("/etc/passwd")
    return self.folder


def pages(test: str, **members: Any) -> type[ExtensionSuite]:
    return broken(WebAppSuite, GoodPages, test, **members)


TestGoodPages = held(WebAppSuite, GoodPages)
TestNoSlash = pages("test_its_path_can_be_one", path="good")
TestSlashAtTheEnd = pages("test_its_path_can_be_one", path="/good/")
TestDots = pages("test_its_path_can_be_one", path="/good/../v2")
TestTakesTheApi = pages("test_its_path_is_not_the_apis", path="/v2/good")
TestNoIndex = pages("test_its_files_are_there", files=lambda self: self.folder)
TestNoFolder = pages("test_its_files_are_there", files=lambda self: Path("/nowhere"))
TestRelativeFolder = pages("test_its_files_are_there", files=lambda self: Path())
TestLinksOut = pages("test_no_file_leads_out_of_the_folder", files=links_out)

# Gateways -----------------------------------------------------------------------------------------------------


class Once(FakeGateway):
    async def apply(self, table, delta):
        if self.applied and self.applied[-1][0] == table:
            raise ValueError("I have this one")
        await super().apply(table, delta)


async def trusts_the_delta(self, table, delta):
    for name in delta.removed if delta else ():
        del dict(table.routes)[name]
    for name in delta.changed if delta else ():
        _ = table.routes[name]


async def needs_a_model(self, table, delta):
    _ = next(iter(table.routes.values())) if table.version == 3 else None
    if table.version == 3 and not table.routes:
        raise RuntimeError("no route")


async def yields_nameless(self):
    yield [UsageRecord(id="", at=0.0, model="suite")]


async def yields_one_by_one(self):
    yield UsageRecord(id="1", at=0.0, model="suite")


def asks_the_machine(self):
    return [LaunchPlan(argv=("nginx", "-c", *Path("/etc").iterdir()))]


def gateway(test: str, **members: Any) -> type[ExtensionSuite]:
    return broken(GatewaySuite, FakeGateway, test, **members)


TestGoodGateway = held(GatewaySuite, FakeGateway)
TestAlwaysThere = gateway("test_it_is_nowhere_before_it_is_entered", public_urls=("http://a.example",))
TestSlash = gateway(
    "test_its_addresses_are_urls", public_urls=property(lambda self: ["http://a.example/"] * self.open)
)
TestNoUrl = gateway(
    "test_its_addresses_are_urls", public_urls=property(lambda self: ["a.example"] * self.open)
)
TestProcessesOfText = gateway("test_its_processes_are_plans", processes=lambda self: ["nginx"])
TestOnceOnly = broken(GatewaySuite, Once, "test_applying_twice_is_applying_once")
TestTrustsTheDelta = gateway("test_a_delta_is_only_a_hint", apply=trusts_the_delta)
TestNeedsAModel = gateway("test_an_empty_table_is_one_too", apply=needs_a_model)
TestSickHealth = gateway("test_health_always_answers", health=raises_later(ConnectionError("gone")))
TestHealthWithoutReason = gateway("test_health_always_answers", health=later(Verdict.no("")))
TestNamelessUsage = gateway("test_usage_is_records", usage=yields_nameless)
TestUsageOneByOne = gateway("test_usage_is_records", usage=yields_one_by_one)
TestLooksAround = gateway("test_its_processes_are_plans", processes=asks_the_machine)
TestNoCommandLine = gateway("test_its_processes_are_plans", processes=lambda self: [LaunchPlan(argv=())])

# Logins -------------------------------------------------------------------------------------------------------


async def forgets_the_state(self, attempt):
    return Redirect(url="https://login.example/authorize")


async def mixes_up(self, attempt):
    await asyncio.sleep(0)
    self.state = attempt.state
    await asyncio.sleep(0)
    return Redirect(url=f"https://login.example/?state={self.state}")


async def trusts_everybody(self, reply):
    return Identity(subject="1", username=reply.parameters.get("user", "guest"))


async def trusts_a_code(self, reply):
    return (
        Identity(subject="1", username="code")
        if reply.parameters.get("code")
        else await FakeLogin.complete(self, reply)
    )


async def trusts_an_error(self, reply):
    return (
        Identity(subject="1", username="e")
        if "error" in reply.parameters
        else await FakeLogin.complete(self, reply)
    )


def login(test: str, **members: Any) -> type[ExtensionSuite]:
    return broken(AuthProviderSuite, FakeLogin, test, **members)


TestGoodLogin = held(AuthProviderSuite, FakeLogin)
TestNoLabel = login("test_its_label_fits_a_button", label="")
TestRelativeRedirect = login(
    "test_begin_sends_the_browser_somewhere", begin=later(Redirect(url="/login?state=x"))
)
TestScriptRedirect = login(
    "test_begin_sends_the_browser_somewhere", begin=later(Redirect(url="javascript:alert(1)"))
)
TestTextRedirect = login("test_begin_sends_the_browser_somewhere", begin=later("https://login.example"))
TestBeginRaises = login("test_begin_sends_the_browser_somewhere", begin=raises_later(KeyError("issuer")))
TestForgetsTheState = login("test_begin_sends_the_state_along", begin=forgets_the_state)
TestRemembersNumbers = login(
    "test_begin_remembers_text",
    begin=later(Redirect(url="https://login.example/?state=x", remember={"nonce": 5})),
)
TestMixesUp = login("test_several_people_may_begin_at_once", begin=mixes_up)
TestTrustsEverybody = login("test_a_browser_that_brings_nothing_is_not_signed_in", complete=trusts_everybody)
TestRaisesKeyError = login(
    "test_a_browser_that_brings_nothing_is_not_signed_in", complete=raises_later(KeyError("code"))
)
TestTrustsACode = login("test_made_up_answers_are_refused", complete=trusts_a_code)
TestTrustsAnError = login("test_a_login_that_failed_there_is_refused", complete=trusts_an_error)
TestWaitsBackwards = login(
    "test_begin_sends_the_browser_somewhere", begin=raises_later(TryAgain("later", after=-1))
)
TestLogsOutNowhere = login("test_logout_leads_somewhere_or_nowhere", logout=later("https://login.example"))
TestDocumentsOfText = login(
    "test_documents_are_files", documents=later({"metadata.xml": ("text/xml", "<xml/>")})
)
