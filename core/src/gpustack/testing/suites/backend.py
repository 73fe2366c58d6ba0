"""The contract of inference backends."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pytest

from gpustack.plugin import (
    Arrangement,
    ArrangesMembers,
    Artifact,
    ContainerImage,
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    Member,
    ModelFacts,
    OnWorker,
    PipxPackage,
    Platform,
    Probe,
    Refused,
    ReleaseBinary,
    ResourceClaim,
    SpansWorkers,
    Suggestion,
    SuggestsLess,
)
from gpustack.testing.suites.base import ExtensionSuite
from gpustack.testing.suites.checks import are_texts, is_count, is_requirement, is_text, is_url
from gpustack.testing.suites.samples import (
    FLEETS,
    MODELS,
    PLATFORMS,
    STRANGE_PARAMETERS,
    STRANGE_PLATFORMS,
)

_METRIC = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_COMMAND = "/opt/gpustack/bin/engine"
_PORTS = (40017, 40999)
#: Of each member.
_MEMBER_PORTS = (41000, 41001)
_EVERYWHERE = re.compile(r"(^|[=\s/\[])(0\.0\.0\.0|::|\[::\]|\*)($|[:\s\]])")


class InferenceBackendSuite(ExtensionSuite[InferenceBackend[Any]]):
    """Holds what :class:`gpustack.plugin.InferenceBackend` promises."""

    kind = "backends"

    #: Models that it must accept, on one of the fleets at least, beside those of the suite that it happens to accept.
    must_accept: ClassVar[Sequence[ModelFacts]] = ()
    #: Sets of the engine's parameters that work, each as users give them; the suite asks with each of them too.
    parameters: ClassVar[Sequence[Sequence[str]]] = ()
    #: Sets of parameters that can never work: estimate and launch refuse each.
    refused_parameters: ClassVar[Sequence[Sequence[str]]] = ()
    #: How the context is set, as in ``"--ctx-size={}"``; with it, more context must never be estimated smaller.
    context_parameter: ClassVar[str] = ""
    #: Versions and platforms that do not exist: artifact refuses each.
    refused_versions: ClassVar[Sequence[str]] = ()
    refused_platforms: ClassVar[Sequence[Platform]] = ()

    # accepts ----------------------------------------------------------------------------------------------------

    def test_accepts_answers_for_every_model_and_machine(self, made: InferenceBackend[Any]) -> None:
        """Every backend is asked about every model, also of a format nobody knows, and on a machine without GPUs."""
        for model, devices in self._questions():
            try:
                verdict = self.pure(made.accepts, model, devices)
            except Refused as error:
                pytest.fail(f"accepts raised Refused: {error}; a refusal is Verdict.no(reason) here")
            self.verdict(verdict, f"accepts for {_about(model, devices)}")

    def test_accepts_some_model(self, made: InferenceBackend[Any]) -> None:
        """A backend that accepts no model serves nobody."""
        assert next(self._accepted(made), None), (
            "accepts says no to every model of the suite on every machine; name one that it serves in `must_accept`"
        )

    def test_accepts_the_models_it_must(self, made: InferenceBackend[Any]) -> None:
        """What the test class names in ``must_accept`` is accepted on one of the machines."""
        for model in self.must_accept:
            verdicts = [made.accepts(model, devices) for devices in FLEETS]
            assert any(each.ok for each in verdicts), f"accepts says no to {model!r}: {verdicts[0].reason}"

    def test_accepts_says_the_same_in_whatever_order_it_is_asked(self, made: InferenceBackend[Any]) -> None:
        """One object answers for all models of a server: nothing of one question stays for the next."""
        questions = list(self._questions())
        forth = [made.accepts(*each) for each in questions]
        back = [made.accepts(*each) for each in reversed(questions)][::-1]
        for question, one, other in zip(questions, forth, back, strict=True):
            assert one == other, f"accepts for {_about(*question)} said {one}, and later {other}"

    # estimate ---------------------------------------------------------------------------------------------------

    def test_estimate_is_memory_that_can_be_reserved(self, made: InferenceBackend[Any]) -> None:
        """The claim is what the scheduler reserves: whole bytes, none negative, something at all, GPUs that there are."""
        for model, devices, parameters in self._requests(made):
            claim = self._estimate(made, model, devices, parameters)
            if claim is None:
                continue
            about = f"estimate for {_about(model, devices)}"
            counts = (claim.ram, claim.vram, claim.gpus)
            assert all(map(is_count, counts)), (
                f"{about} is {claim}: give whole numbers of bytes, none negative"
            )
            assert claim.ram + claim.vram > 0, f"{about} is {claim}: a process takes some memory"
            assert bool(claim.vram) == bool(claim.gpus), f"{about} is {claim}: vram and gpus go together"
            assert claim.gpus <= len(devices), f"{about} is {claim}: there are only {len(devices)} GPUs"

    def test_estimate_without_devices_is_ram_alone(self, made: InferenceBackend[Any]) -> None:
        """With ``request.devices`` empty the model runs on the CPU, and no GPU is claimed."""
        for model, devices, parameters in self._requests(made):
            claim = None if devices else self._estimate(made, model, devices, parameters)
            assert claim is None or (claim.vram, claim.gpus) == (0, 0), (
                f"estimate for {_about(model, devices)} is {claim}; without devices, claim RAM alone"
            )

    def test_estimate_never_shrinks_when_the_model_grows(self, made: InferenceBackend[Any]) -> None:
        """A model of twice the weights, or of four times the context, takes no less memory."""
        for model, devices, parameters in self._requests(made):
            small = self._estimate(made, model, devices, parameters)
            for what, larger in (
                ("twice the weights", replace(model, weight_bytes=2 * model.weight_bytes)),
                ("four times the context", replace(model, context_length=4 * model.context_length)),
            ):
                large = self._estimate(made, larger, devices, parameters)
                if small is not None and large is not None:
                    assert _total(large) >= _total(small), (
                        f"estimate for {_about(model, devices)} is {small}, and with {what} only {large}"
                    )

    def test_estimate_never_shrinks_when_the_user_asks_for_more_context(
        self, made: InferenceBackend[Any]
    ) -> None:
        """A longer context in ``context_parameter`` takes no less memory, and in the end takes more."""
        if not self.context_parameter:
            pytest.skip("the test class names no context_parameter")
        for model, devices in self._accepted(made):
            claims = [
                claim
                for tokens in (512, 4096, 32768)
                if (claim := self._estimate(made, model, devices, (self.context_parameter.format(tokens),)))
            ]
            totals = [_total(each) for each in claims]
            assert totals == sorted(totals), (
                f"estimate for {_about(model, devices)} shrinks while the context grows: {claims}"
            )

    # artifact ---------------------------------------------------------------------------------------------------

    def test_artifact_is_something_that_a_worker_can_fetch(self, made: InferenceBackend[Any]) -> None:
        """What to install is a package, a binary or an image, of just the version that was asked for."""
        for platform in PLATFORMS:
            if (artifact := self._artifact(made, made.default_version, platform)) is not None:
                _check_artifact(artifact, made.default_version)

    def test_artifact_of_the_default_version_exists(self, made: InferenceBackend[Any]) -> None:
        """``default_version`` is what every model gets that names none."""
        found = [self._artifact(made, made.default_version, platform) for platform in PLATFORMS]
        assert any(found), (
            f"artifact refuses its own default_version {made.default_version!r} on every platform"
        )

    def test_artifact_refuses_or_answers_on_any_platform(self, made: InferenceBackend[Any]) -> None:
        """Workers may be anything: for a platform without the engine, artifact raises Refused and nothing else."""
        for platform in STRANGE_PLATFORMS:
            self._artifact(made, made.default_version, platform)

    def test_artifact_refuses_or_answers_for_any_version(self, made: InferenceBackend[Any]) -> None:
        """Versions are typed by users: one that cannot be is Refused, and nothing else is raised."""
        for version in ("0", "0.0.0", "999999.1", "not a version", "", "../../etc", "1.0; rm -rf /"):
            artifact = self._artifact(made, version, PLATFORMS[0])
            if artifact is not None:
                assert artifact.version == version, (
                    f"artifact for version {version!r} is one of version {artifact.version!r}: two installations would "
                    "be taken for one"
                )

    def test_artifact_refuses_what_does_not_exist(self, made: InferenceBackend[Any]) -> None:
        """The test class's ``refused_versions`` and ``refused_platforms`` are Refused."""
        impossible = [
            *((version, PLATFORMS[0]) for version in self.refused_versions),
            *((made.default_version, platform) for platform in self.refused_platforms),
        ]
        for version, platform in impossible:
            artifact = self._artifact(made, version, platform)
            assert artifact is None, (
                f"artifact({version!r}, {platform}) is {_brief(artifact)}, and must be Refused"
            )

    # launch -----------------------------------------------------------------------------------------------------

    def test_launch_is_a_process_that_can_be_started(self, made: InferenceBackend[Any]) -> None:
        """The plan has a command line of the engine, text only, and a way to learn that it is ready."""
        for plan, request in self._plans(made):
            _check_plan(plan)
            assert request.command in plan.argv, (
                f"launch does not run the engine: {request.command} (request.command) is not in {plan.argv}"
            )

    def test_launch_listens_where_it_is_told(self, made: InferenceBackend[Any]) -> None:
        """The worker asks the engine at ``request.port`` on loopback; an engine elsewhere is never ready, or open to all."""
        for plan, request in self._plans(made):
            assert any(_holds_number(each, request.port) for each in _texts(plan)), (
                f"launch does not tell the engine its port: {request.port} is not in {plan.argv} nor in env"
            )
            wide = next((each for each in _texts(plan) if _EVERYWHERE.search(each)), None)
            assert wide is None, (
                f"launch opens the engine to the whole network ({wide!r}); listen on request.host"
            )

    def test_launch_names_the_model(self, made: InferenceBackend[Any]) -> None:
        """The engine loads what is at ``request.model_path``, which may have spaces and is one item."""
        for plan, request in self._plans(made):
            assert any(request.model_path in each for each in _texts(plan)), (
                f"launch does not name the model: {request.model_path!r} (request.model_path) is not in {plan.argv}"
            )

    def test_launch_can_be_repeated_on_another_port(self, made: InferenceBackend[Any]) -> None:
        """Each restart asks again with another port, which is all that differs."""
        for plan, request in self._plans(made):
            other = self._launch(made, replace(request, port=_PORTS[1]))
            assert other is not None, f"launch refuses port {_PORTS[1]}, and took {request.port}"
            one, two = ([_without(each, port) for each in _texts(which)] for which, port in
                        ((plan, request.port), (other, _PORTS[1])))  # fmt: skip
            assert one == two, f"launch on another port differs in more than the port: {plan}, then {other}"

    def test_a_users_parameter_reaches_the_engine_or_is_refused(self, made: InferenceBackend[Any]) -> None:
        """What a user asks for never vanishes without a word: ``request.parameters`` go on to the engine, or are Refused."""
        mark = "gpustack-suite-parameter"
        for model, devices in self._accepted(made):
            plan = self._launch(made, self._request(model, devices, (f"--{mark}=1",)))
            assert plan is None or any(mark in each for each in _texts(plan)), (
                f"launch drops a user's parameter: --{mark}=1 is neither in {plan.argv} nor Refused; "
                "end argv with *request.parameters"
            )

    # Spanning workers -------------------------------------------------------------------------------------------

    def test_members_of_an_instance_each_have_a_plan(self, made: InferenceBackend[Any]) -> None:
        """Where it spans workers: a claim and a process for each member, and only the leader listens to requests."""
        if not isinstance(made, SpansWorkers):
            assert not hasattr(made, "launch_member") and not hasattr(made, "members"), (  # noqa: PT018
                "it has one of `members` and `launch_member`; a backend that spans workers has both"
            )
            pytest.skip("it serves a model on one worker")
        device = GpuDevice(index=0, uuid="suite", vendor="nvidia", name="Suite", memory_total=24 << 30)
        members = tuple(
            Member(number=each, host=f"192.0.2.{each + 1}", ports=_MEMBER_PORTS, devices=(device,))
            for each in range(2)
        )
        for model, devices in self._accepted(made):
            if not devices:
                continue
            question = _estimate_request(made, model, devices, ())
            claims = self.answer(made.members, question, [member.devices for member in members])
            if isinstance(claims, Refused):
                continue
            assert [type(each) for each in claims] == [ResourceClaim] * 2, (
                f"members returned {claims!r} for 2 workers; return a ResourceClaim for each"
            )
            for member in members:
                request = replace(
                    self._request(model, devices, ()),
                    members=members,
                    member=member.number,
                    devices=member.devices,
                )
                plan: object = self.pure(made.launch_member, request)
                assert isinstance(plan, LaunchPlan), f"launch_member returned {plan!r}; return a LaunchPlan"
                _check_plan(plan, leads=member.number == 0)
                self._check_arrangement(made, request)

    def _check_arrangement(self, made: InferenceBackend[Any], request: LaunchRequest) -> None:
        if isinstance(made, ArrangesMembers):
            found: object = self.pure(made.arrangement, request)
            assert isinstance(found, Arrangement), f"arrangement returned {found!r}; return an Arrangement"
            assert 1 <= found.ports <= 1024, f"arrangement asks for {found.ports} ports; 1 to 1024 are given"

    def test_what_is_suggested_needs_less_memory(self, made: InferenceBackend[Any]) -> None:
        """Where it suggests parameters: the engine takes them, with less memory each than before."""
        if not isinstance(made, SuggestsLess):
            pytest.skip("it suggests nothing")
        for model, devices in self._accepted(made):
            question = _estimate_request(made, model, devices, ())
            before: Any = self.pure(made.estimate, question)
            kinds = self.answer(made.suggestions, question)
            assert not isinstance(kinds, Refused), f"suggestions refuses what estimate takes: {kinds}"
            for kind in kinds:
                for each in kind:
                    assert isinstance(each, Suggestion), f"suggestions gave {each!r}; give a Suggestion"
                    after: Any = self.pure(made.estimate, replace(question, parameters=each.parameters))
                    assert isinstance(after, ResourceClaim), (
                        f"its own suggestion {each.what!r} is refused: {after}"
                    )
                    assert (after.ram + after.vram) < before.ram + before.vram, (
                        f"with {each.what} the model takes {after}, which is not less than {before}"
                    )

    # Parameters -------------------------------------------------------------------------------------------------

    def test_strange_parameters_are_answered_or_refused(self, made: InferenceBackend[Any]) -> None:
        """Parameters are typed by users: what cannot be is Refused, in one line, and nothing else is raised."""
        for model, devices in self._accepted(made):
            for parameters in STRANGE_PARAMETERS:
                self._estimate(made, model, devices, parameters)
                self._launch(made, self._request(model, devices, parameters))

    def test_parameters_that_work_are_taken(self, made: InferenceBackend[Any]) -> None:
        """The test class's ``parameters`` are refused by neither estimate nor launch."""
        for model, devices in self._accepted(made):
            for parameters in self.parameters:
                for method, argument in self._asking(made, model, devices, tuple(parameters)):
                    answer = self.answer(method, argument)
                    assert not isinstance(answer, Refused), (
                        f"{method.__name__} refuses {parameters}: {answer}"
                    )

    def test_parameters_that_never_work_are_refused(self, made: InferenceBackend[Any]) -> None:
        """The test class's ``refused_parameters`` are Refused by estimate, before anything is placed, and by launch."""
        for model, devices in self._accepted(made):
            for parameters in self.refused_parameters:
                for method, argument in self._asking(made, model, devices, tuple(parameters)):
                    answer = self.answer(method, argument)
                    assert isinstance(answer, Refused), (
                        f"{method.__name__} does not refuse {parameters}: {answer!r}"
                    )

    # The rest ---------------------------------------------------------------------------------------------------

    def test_metrics_are_names_for_names(self, made: InferenceBackend[Any]) -> None:
        """The engine's metric names are mapped to GPUStack's; both are words that Prometheus takes."""
        metrics = self.pure(made.metrics)
        assert isinstance(metrics, Mapping), (
            f"metrics returned {metrics!r}; return a mapping, which may be empty"
        )
        for name, ours in metrics.items():
            for each in (name, ours):
                assert _METRIC.fullmatch(str(each)), f"metrics has {each!r}, which is no name"

    def test_several_threads_may_ask_at_once(self, made: InferenceBackend[Any]) -> None:
        """One object serves every instance; its plain methods are called in threads."""
        model, devices = next(self._accepted(made), (MODELS[0], FLEETS[0]))
        self.same_from_threads(made.accepts, model, devices)
        for method, argument in self._asking(made, model, devices, ()):
            self.same_from_threads(method, argument)
        self.same_from_threads(made.artifact, made.default_version, PLATFORMS[0])

    def test_it_answers_when_entered_as_before(self, made: InferenceBackend[Any]) -> None:
        """A backend is a description: what it says does not depend on its being entered."""
        questions = [(made.accepts, question) for question in self._accepted(made)]
        before = [method(*args) for method, args in questions]

        async def ask(entered: InferenceBackend[Any]) -> list[object]:
            return [entered.accepts(*args) for _, args in questions]

        assert self.used(made, ask) == before, "accepts says something else once the backend is entered"

    # Tools ------------------------------------------------------------------------------------------------------

    def _questions(self) -> Iterator[tuple[ModelFacts, tuple[GpuDevice, ...]]]:
        return ((model, devices) for model in (*self.must_accept, *MODELS) for devices in FLEETS)

    def _accepted(self, made: InferenceBackend[Any]) -> Iterator[tuple[ModelFacts, tuple[GpuDevice, ...]]]:
        """Yield what it agrees to: it is asked for estimates and plans of nothing else."""
        for model, devices in self._questions():
            if getattr(self.answer(made.accepts, model, devices), "ok", False):
                yield model, devices

    def _requests(
        self, made: InferenceBackend[Any]
    ) -> Iterator[tuple[ModelFacts, tuple[GpuDevice, ...], tuple[str, ...]]]:
        for model, devices in self._accepted(made):
            for parameters in ((), *self.parameters):
                yield model, devices, tuple(parameters)

    def _estimate(
        self,
        made: InferenceBackend[Any],
        model: ModelFacts,
        devices: tuple[GpuDevice, ...],
        parameters: Sequence[str],
    ) -> ResourceClaim | None:
        """Return the claim; None when it is refused."""
        request = _estimate_request(made, model, devices, parameters)
        try:
            claim: object = self.pure(made.estimate, request)
        except Refused:
            return None
        assert isinstance(claim, ResourceClaim), f"estimate returned {claim!r}; return a ResourceClaim"
        return claim

    def _artifact(self, made: InferenceBackend[Any], version: str, platform: Platform) -> Artifact | None:
        try:
            artifact: object = self.pure(made.artifact, version, platform)
        except Refused:
            return None
        assert isinstance(artifact, PipxPackage | ReleaseBinary | ContainerImage | OnWorker), (
            f"artifact returned {artifact!r}; return a PipxPackage, a ReleaseBinary, a ContainerImage or OnWorker"
        )
        return artifact

    def _launch(self, made: InferenceBackend[Any], request: LaunchRequest) -> LaunchPlan | None:
        try:
            plan: object = self.pure(made.launch, request)
        except Refused:
            return None
        assert isinstance(plan, LaunchPlan), f"launch returned {plan!r}; return a LaunchPlan"
        return plan

    def _plans(self, made: InferenceBackend[Any]) -> Iterator[tuple[LaunchPlan, LaunchRequest]]:
        refusal, found = "", False
        for model, devices, parameters in self._requests(made):
            request = self._request(model, devices, parameters)
            answer = self.answer(made.launch, request)
            if isinstance(answer, Refused):
                refusal = str(answer)
            elif (plan := self._launch(made, request)) is not None:
                found = True
                yield plan, request
        assert found or not refusal, f"launch refuses every model that accepts agreed to: {refusal}"

    def _request(
        self, model: ModelFacts, devices: tuple[GpuDevice, ...], parameters: Sequence[str]
    ) -> LaunchRequest:
        vram = 8 << 30 if devices else 0
        return LaunchRequest(
            instance_name="suite-abcde",
            model_name="suite",
            model=model,
            command=_COMMAND,
            version=self.extension.default_version,
            host="127.0.0.1",
            port=_PORTS[0],
            model_path="/srv/models of the suite/model file.gguf",
            parameters=tuple(parameters),
            claim=ResourceClaim(ram=1 << 30, vram=vram, gpus=len(devices)),
            devices=devices,
        )

    def _asking(
        self,
        made: InferenceBackend[Any],
        model: ModelFacts,
        devices: tuple[GpuDevice, ...],
        parameters: tuple[str, ...],
    ) -> tuple[tuple[Any, object], ...]:
        return (
            (made.estimate, _estimate_request(made, model, devices, parameters)),
            (made.launch, self._request(model, devices, parameters)),
        )


def _estimate_request(
    made: InferenceBackend[Any], model: ModelFacts, devices: tuple[GpuDevice, ...], parameters: Sequence[str]
) -> EstimateRequest:
    return EstimateRequest(
        model=model, version=made.default_version, parameters=tuple(parameters), devices=devices
    )


def _about(model: ModelFacts, devices: Sequence[GpuDevice]) -> str:
    what = f"a {model.format} model of kind {model.categories[0] if model.categories else 'unknown'}"
    return f"{what} on {len(devices)} devices ({devices[0].vendor})" if devices else f"{what} without devices"


def _total(claim: ResourceClaim) -> int:
    return claim.ram + claim.vram


def _brief(artifact: object) -> str:
    text = repr(artifact)
    return text if len(text) < 200 else f"{text[:200]}…"


def _texts(plan: LaunchPlan) -> list[str]:
    """Return all that the process is told."""
    return [*plan.argv, *(f"{name}={value}" for name, value in sorted(plan.env.items()))]


def _holds_number(text: str, number: int) -> bool:
    return re.search(rf"(?<!\d){number}(?!\d)", text) is not None


def _without(text: str, port: int) -> str:
    return re.sub(rf"(?<!\d){port}(?!\d)", "PORT", text)


def _check_plan(plan: LaunchPlan, *, leads: bool = True) -> None:
    assert isinstance(plan.argv, tuple), f"argv is {plan.argv!r}; give a tuple"
    assert plan.argv, "argv is empty; it begins with the command"
    wrong = [each for each in plan.argv if not _is_argument(each)]
    assert not wrong, f"argv holds {wrong[0]!r}: every item is text, numbers too" if wrong else ""
    assert isinstance(plan.env, Mapping), f"env is {plan.env!r}; give a mapping"
    for name, value in plan.env.items():
        assert are_texts({name: value}), f"env holds {name!r}: {value!r}; names and values are text"
        assert "=" not in name, f"env holds a name with '=' in it: {name!r}"
    assert (
        plan.cwd is None or PurePosixPath(plan.cwd).is_absolute() or re.match(r"[A-Za-z]:[\\/]", plan.cwd)
    ), f"cwd is {plan.cwd!r}; give an absolute path, or None for the instance's own folder"
    assert isinstance(plan.ready, Probe), f"ready is {plan.ready!r}; give a Probe"
    if leads or plan.ready.path:
        assert plan.ready.path.startswith("/"), f"ready.path is {plan.ready.path!r}; it begins with /"
    assert plan.ready.timeout > 0, f"ready.timeout is {plan.ready.timeout!r} seconds"


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _check_artifact(artifact: Artifact, version: str) -> None:
    assert artifact.version == version, f"artifact for version {version!r} is one of {artifact.version!r}"
    match artifact:
        case PipxPackage():
            _check_package(artifact)
        case ReleaseBinary():
            assert is_url(artifact.url), f"url {artifact.url!r} is no URL"
            path = PurePosixPath(artifact.executable)
            inside = bool(artifact.executable) and not path.is_absolute() and ".." not in path.parts
            assert inside, f"executable {artifact.executable!r} is no path inside the archive"
            assert re.fullmatch(r"([0-9a-f]{64})?", artifact.sha256), f"sha256 {artifact.sha256!r} is none"
        case ContainerImage():
            first, slash, _ = artifact.image.partition("/")
            assert is_text(artifact.image), "image has no name"
            assert not (slash and ("." in first or ":" in first or first == "localhost")), (
                f"image {artifact.image!r} names a registry; which one is used is a setting of GPUStack's"
            )


def _check_package(package: PipxPackage) -> None:
    name = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
    assert re.fullmatch(rf"{name}(\[[\w,.-]+\])?", package.package), f"package {package.package!r} is no name"
    assert re.fullmatch(name, package.command), f"command {package.command!r} is no name of a console script"
    assert package.verify, (
        "verify is empty: without it nobody knows that the engine works; --version is usual"
    )
    assert all(map(is_text, package.verify)), f"verify is {package.verify!r}; every item is text"
    for each in package.requirements:
        assert is_requirement(each), f"requirements has {each!r}, which pip would not understand"
    for line in package.constraints.replace("\\\n", " ").splitlines():
        wanted = line.split("#")[0].split(" --hash")[0].strip()
        assert not wanted or is_requirement(wanted), f"constraints has the line {line!r}"
    assert all(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", each) for each in package.imports), (
        f"imports is {package.imports!r}; every item is the name of a module"
    )
    if package.wheel is None:
        return
    assert re.fullmatch(r"[^/\\]+\.whl", package.wheel_name), (
        f"wheel_name {package.wheel_name!r} is no file name of a wheel"
    )
    try:
        with zipfile.ZipFile(io.BytesIO(package.wheel)) as wheel:
            points = [each for each in wheel.namelist() if each.endswith(".dist-info/entry_points.txt")]
            text = "".join(wheel.read(each).decode() for each in points)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        pytest.fail(f"wheel is no wheel: {error}")
    assert re.search(rf"^\s*{re.escape(package.command)}\s*=", text, re.MULTILINE), (
        f"the wheel has no console script {package.command!r}"
    )
