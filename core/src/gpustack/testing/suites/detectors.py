"""The contracts of what measures a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gpustack.plugin import (
    DeviceExposure,
    DeviceRequest,
    Filesystem,
    GpuDetector,
    GpuDevice,
    GpuProcess,
    GpuUsage,
    Refused,
    SystemDetector,
    SystemReading,
)
from gpustack.testing.suites.base import E, ExtensionSuite, error_line
from gpustack.testing.suites.checks import are_texts, is_count, is_text
from gpustack.testing.suites.samples import some_devices


class _DetectorSuite(ExtensionSuite[E]):
    #: The machine of the tests has what it detects: a no of ``present`` is then a failure, and no reason to skip.
    must_be_present: ClassVar[bool] = False

    def test_present_always_answers(self, make: Callable[[], E]) -> None:
        """``present`` is asked on every machine, before anything else, and never raises; a no has a reason."""
        for _ in range(2):
            self._present(make())

    def _present(self, made: Any) -> Any:
        try:
            answer = made.present()
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the plugin's
            pytest.fail(
                f"present raised {error_line(error)}; it never raises: return Verdict.no('the reason')"
            )
        return self.verdict(answer, "present")

    @pytest.fixture
    def here(self, made: E) -> E:
        """One detector that says that it is present; without one the test is skipped."""
        verdict = self._present(made)
        if not verdict.ok:
            assert not self.must_be_present, f"present says no: {verdict.reason}"
            pytest.skip(f"not present on this machine: {verdict.reason}")
        return made


class SystemDetectorSuite(_DetectorSuite[SystemDetector[Any]]):
    """Holds what :class:`gpustack.plugin.SystemDetector` promises."""

    kind = "system_detectors"

    def test_measures_a_machine_that_can_be(self, here: SystemDetector[Any], tmp_path: Path) -> None:
        """There is a core, and memory; no more is used than there is; percentages are some."""
        reading = self._measure(here, [tmp_path])
        assert reading.cores >= 1, f"cores is {reading.cores}; something runs this test"
        assert 0 < reading.ram_used <= reading.ram_total, (
            f"ram_used is {reading.ram_used} of ram_total {reading.ram_total}"
        )
        assert 0 <= reading.swap_used <= reading.swap_total, (
            f"swap_used is {reading.swap_used} of swap_total {reading.swap_total}"
        )
        assert 0 <= reading.cpu_utilization <= 100, (
            f"cpu_utilization is {reading.cpu_utilization}, in percent"
        )

    def test_finds_the_file_systems_of_the_paths(self, here: SystemDetector[Any], tmp_path: Path) -> None:
        """Models and engines are kept in ``paths``: it tells how much room there is."""
        reading = self._measure(here, [tmp_path])
        assert len(reading.filesystems) == 1, (
            f"one path lies on one file system, not on {reading.filesystems!r}"
        )
        found = reading.filesystems[0]
        assert isinstance(found, Filesystem), f"filesystems holds {found!r}, which is no Filesystem"
        assert tmp_path.resolve().is_relative_to(found.mount_point), (
            f"the file system at {found.mount_point!r} does not hold {tmp_path}"
        )
        assert found.total > 0, f"{found} has no size"
        assert 0 <= found.available <= found.free <= found.total, f"{found}: available <= free <= total"
        assert 0 <= found.used <= found.total, f"{found}: used <= total"

    def test_each_file_system_is_told_once(self, here: SystemDetector[Any], tmp_path: Path) -> None:
        """Several paths often share one."""
        (tmp_path / "a").mkdir()
        reading = self._measure(here, [tmp_path, tmp_path / "a", tmp_path, Path.cwd()])
        points = [each.mount_point for each in reading.filesystems]
        assert len(points) == len(set(points)), f"a file system is told twice: {points}"

    def test_no_path_no_file_system(self, here: SystemDetector[Any]) -> None:
        """The figures are asked for without paths, too."""
        reading = self._measure(here, [])
        assert reading.filesystems == (), f"nobody asked for {reading.filesystems!r}"

    def test_measures_again_and_again(self, here: SystemDetector[Any], tmp_path: Path) -> None:
        """It is asked every few seconds for as long as the worker runs; a machine keeps its size."""

        async def thrice(entered: SystemDetector[Any]) -> list[SystemReading]:
            return [await self.awaited("measure", entered.measure([tmp_path])) for _ in range(3)]

        sizes = {(each.cores, each.ram_total) for each in self.used(here, thrice)}
        assert len(sizes) == 1, f"cores and memory of one machine change: {sizes}"

    def _measure(self, here: SystemDetector[Any], paths: Sequence[Path]) -> SystemReading:
        async def ask(entered: SystemDetector[Any]) -> object:
            return await self.awaited("measure", entered.measure(paths))

        reading = self.used(here, ask)
        assert isinstance(reading, SystemReading), f"measure returned {reading!r}; return a SystemReading"
        for name in ("cores", "ram_total", "ram_used", "swap_total", "swap_used"):
            value = getattr(reading, name)
            assert is_count(value), f"{name} is {value!r}; give a whole number"
        assert isinstance(reading.filesystems, tuple), "filesystems is a tuple"
        return reading


class GpuDetectorSuite(_DetectorSuite[GpuDetector[Any]]):
    """Holds what :class:`gpustack.plugin.GpuDetector` promises.

    What needs devices is skipped on a machine without; give fakes of the driver through the fixture ``settings``, or
    by overriding ``make``, and set ``must_be_present`` to hold it everywhere.
    """

    kind = "gpu_detectors"

    #: Devices can be kept from a process. Where they cannot (the one GPU of an Apple machine), say False.
    hides: ClassVar[bool] = True

    def test_devices_are_described(self, here: GpuDetector[Any]) -> None:
        """Every device has a uuid, an index, a name, memory, and the vendor of its detector."""
        for device in self._devices(here):
            assert device.vendor == here.vendor, f"{device} is not of the detector's vendor {here.vendor!r}"
            assert is_text(device.uuid), f"{device} has no uuid"
            assert is_count(device.index), f"{device} has no index"
            assert is_text(device.name), f"{device} has no name"
            assert is_count(device.memory_total, least=1), f"{device} has no memory"

    def test_a_sliced_device_stands_for_its_slices_alone(self, here: GpuDetector[Any]) -> None:
        """What is offered as slices is not offered as a whole too: its memory would be given away twice."""
        devices = self._devices(here)
        whole = {each.uuid for each in devices} & {each.parent_uuid for each in devices}
        assert not whole, f"{sorted(whole)} is there beside slices of it; leave it out"

    def test_devices_can_be_told_apart(self, here: GpuDetector[Any]) -> None:
        """Models are placed by index, and figures are kept by uuid: each is unique."""
        devices = self._devices(here)
        for what in ("uuid", "index"):
            values = [getattr(each, what) for each in devices]
            assert len(set(values)) == len(values), f"two devices have one {what}: {values}"

    def test_devices_come_in_a_fixed_order(
        self, make: Callable[[], GpuDetector[Any]], here: GpuDetector[Any]
    ) -> None:
        """They are sorted by index, at every call and after every start alike."""
        first, again = self._devices(here), self._devices(make())
        indexes = [each.index for each in first]
        assert indexes == sorted(indexes), f"devices are not sorted by index: {indexes}"
        assert [each.uuid for each in first] == [each.uuid for each in again], (
            f"devices changed their order: {first}, then {again}"
        )

    def test_usage_is_of_devices_that_there_are(self, here: GpuDetector[Any]) -> None:
        """Figures are by uuid of a device; one that cannot be read is left out."""
        devices, usage = self._both(here)
        strangers = set(usage) - {each.uuid for each in devices}
        assert not strangers, f"usage has {sorted(strangers)}, which devices does not have"

    def test_usage_can_be(self, here: GpuDetector[Any]) -> None:
        """No more memory is used than there is, utilization is a percentage, and power is not negative."""
        devices, usage = self._both(here)
        sizes = {each.uuid: each.memory_total for each in devices}
        for uuid, each in usage.items():
            assert isinstance(each, GpuUsage), f"usage holds {each!r}, which is no GpuUsage"
            total = sizes.get(uuid, each.memory_used)
            assert is_count(each.memory_used, most=total), (
                f"{uuid}: memory_used is {each.memory_used} of {total} bytes"
            )
            assert 0 <= each.utilization <= 100, f"{uuid}: utilization is {each.utilization}, in percent"
            assert each.power_watts >= 0, f"{uuid}: power_watts is {each.power_watts}"
            assert is_count(each.memory_errors), f"{uuid}: memory_errors is {each.memory_errors!r}"
            faults: object = each.faults
            assert isinstance(faults, tuple), f"{uuid}: faults is {faults!r}; give a tuple"
            assert all(map(is_text, faults)), f"{uuid}: faults is {faults!r}; give texts for people"

    def test_processes_are_each_told_once(self, here: GpuDetector[Any]) -> None:
        """What of a device's memory is others' is worked out from them; who cannot tell says None."""
        for uuid, each in self._both(here)[1].items():
            assert each.processes is None or isinstance(each.processes, tuple), (
                f"{uuid}: processes is {each.processes!r}; give a tuple, or None where nobody tells"
            )
            found = each.processes or ()
            for process in found:
                assert isinstance(process, GpuProcess), f"{uuid}: {process!r} is no GpuProcess"
                assert process.memory_used is None or is_count(process.memory_used), (
                    f"{uuid}: {process} uses {process.memory_used!r} bytes"
                )
            pids = [process.pid for process in found]
            assert len(set(pids)) == len(pids), f"{uuid}: a process is told twice: {pids}"

    def test_expose_shows_exactly_the_chosen_devices(self, made: GpuDetector[Any]) -> None:
        """Two instances on two devices must not see each other's: each choice gives an environment of its own."""
        devices = some_devices(3, vendor=self.extension.vendor)
        choices = [(), *((each,) for each in devices), devices[:2], devices[1:], devices]
        environments = [dict(self._expose(made, each).env) for each in choices]
        if not self.hides:
            return
        for number, one in enumerate(environments):
            twin = next((n for n in range(number) if environments[n] == one), None)
            assert twin is None, (
                f"expose gives {one} for {_indexes(choices[number])} and for {_indexes(choices[twin or 0])}: a process "
                "would see devices that others have"
            )

    def test_expose_says_it_in_the_same_variables(self, made: GpuDetector[Any]) -> None:
        """A variable that is set for some choices only would be inherited for the others; none is left open."""
        devices = some_devices(2, vendor=self.extension.vendor)
        names = [sorted(self._expose(made, each).env) for each in ((), devices[:1], devices)]
        if self.hides:
            assert names[0], "expose sets nothing for no device at all: the process would see every one"
        assert names[0] == names[1] == names[2], f"expose sets now these variables, now others: {names}"

    def test_expose_is_about_the_real_devices_too(self, here: GpuDetector[Any]) -> None:
        """What ``devices`` returned can be shown, all and each."""
        devices = self._devices(here)
        for each in (devices, *((device,) for device in devices)):
            self._expose(here, tuple(each))

    def _devices(self, detector: GpuDetector[Any]) -> list[GpuDevice]:
        return self._both(detector)[0]

    def _both(self, detector: GpuDetector[Any]) -> tuple[list[GpuDevice], Mapping[str, GpuUsage]]:
        async def ask(entered: GpuDetector[Any]) -> tuple[object, object]:
            devices = await self.awaited("devices", entered.devices())
            return devices, await self.awaited("usage", entered.usage())

        devices, usage = self.used(detector, ask)
        assert isinstance(devices, Sequence), f"devices returned {devices!r}; return a sequence"
        wrong = [each for each in devices if not isinstance(each, GpuDevice)]
        assert not wrong, f"devices holds {wrong[0]!r}, which is no GpuDevice" if wrong else ""
        assert isinstance(usage, Mapping), f"usage returned {usage!r}; return a mapping by uuid"
        return list(devices), usage

    def _expose(self, made: GpuDetector[Any], devices: tuple[GpuDevice, ...]) -> DeviceExposure:
        try:
            exposure: object = self.pure(made.expose, devices)
        except Refused as error:
            pytest.fail(
                f"expose refuses {_indexes(devices)}: {error}; without a way to show devices nothing starts"
            )
        assert isinstance(exposure, DeviceExposure), f"expose returned {exposure!r}; return a DeviceExposure"
        assert are_texts(exposure.env), f"expose sets {exposure.env!r}; names and values are text"
        for each in exposure.requests:
            assert isinstance(each, DeviceRequest), f"{each!r} is no DeviceRequest"
            assert is_text(each.driver), f"{each} has no driver"
            assert each.ids, f"{each} asks for no device"
            assert all(map(is_text, each.ids)), f"{each} asks for a device by what is no text"
        assert devices or not exposure.requests, f"expose asks for {exposure.requests} to show no device"
        return exposure


def _indexes(devices: Sequence[GpuDevice]) -> str:
    return f"devices {', '.join(str(each.index) for each in devices)}" if devices else "no device"
