"""The client itself."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx

from gpustack.client.chat import ChatDelta, deltas
from gpustack.client.resources import Backends, Engines, Keys, Models, Resource, Routes, as_sent, read_as
from gpustack.client.transport import READ_TIMEOUT, Transport
from gpustack.client.watch import SILENCE, watch
from gpustack.kit.errors import GPUStackError, Unavailable
from gpustack.schemas import (
    ApiKeyPublic,
    ClusterPublic,
    Defragmentation,
    Event,
    FleetPublic,
    GpuDevicePublic,
    GroupOrders,
    Heartbeat,
    InferenceBackendPublic,
    InstanceEventPublic,
    InstanceReport,
    LoginReply,
    ModelFileDownload,
    ModelFilePublic,
    ModelFileReport,
    ModelInstancePublic,
    ModelPublic,
    ModelRoutePublic,
    ModelRouteTargetPublic,
    ModelSetPublic,
    UserPublic,
    VersionInfo,
    WorkerChallenge,
    WorkerEnginePublic,
    WorkerPublic,
    WorkerRegistered,
    WorkerRegistration,
)
from gpustack.schemas.explanations import ModelExplanation
from gpustack.schemas.gateway import GatewayPublic
from gpustack.schemas.plugins import PluginsPublic


class Client:
    """Speaks to one GPUStack server at ``base_url``.

    ``credential`` goes into every request: an API key, a worker's token, the registration token or the local
    command line's token. It can be replaced at any time through :attr:`credential`. ``timeout`` is the longest
    silence in seconds within an ordinary answer; streams have their own.

    ``renew`` returns the credential that is valid now. It is asked when one is refused, and the request sent again.

    Raises InvalidInput at once when ``base_url`` cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        credential: str = "",
        *,
        verify: bool | ssl.SSLContext = True,
        timeout: float = READ_TIMEOUT,
        renew: Callable[[], str] | None = None,
    ) -> None:
        transport = self._transport = Transport(
            base_url, credential, verify=verify, timeout=timeout, renew=renew
        )
        self.models = Models(transport, "/v2/models", ModelPublic)
        self.routes = Routes(transport, "/v2/model-routes", ModelRoutePublic)
        self.route_targets = Resource(transport, "/v2/model-route-targets", ModelRouteTargetPublic)
        self.keys = Keys(transport, "/v2/api-keys", ApiKeyPublic)
        self.instances = Resource(transport, "/v2/model-instances", ModelInstancePublic)
        self.instance_events = Resource(transport, "/v2/model-instance-events", InstanceEventPublic)
        self.model_files = Resource(transport, "/v2/model-files", ModelFilePublic)
        self.workers = Resource(transport, "/v2/workers", WorkerPublic)
        self.worker_engines = Engines(transport, "/v2/worker-engines", WorkerEnginePublic)
        self.clusters = Resource(transport, "/v2/clusters", ClusterPublic)
        self.backends = Backends(transport, "/v2/inference-backends", InferenceBackendPublic)
        self.model_sets = Resource(transport, "/v2/model-sets", ModelSetPublic)
        self.gpu_devices = Resource(transport, "/v2/gpu-devices", GpuDevicePublic)

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; open streams end."""
        await self._transport.close()

    @property
    def base_url(self) -> str:
        """The server's URL, without a slash at its end."""
        return self._transport.base_url

    @property
    def credential(self) -> str:
        """What the next request shows; set it to change it."""
        return self._transport.credential

    @credential.setter
    def credential(self, value: str) -> None:
        self._transport.credential = value

    @property
    def session(self) -> int:
        """The number of a worker's start, which goes into every request; 0 sends none."""
        return self._transport.session

    @session.setter
    def session(self, value: int) -> None:
        self._transport.session = value

    # Whoever asks ---------------------------------------------------------------------------------------

    async def login(self, username: str, password: str) -> LoginReply:
        """Open a session; its cookie goes with the requests that follow. Unauthenticated, Throttled."""
        form = {"username": username, "password": password}
        return read_as(LoginReply, await self._transport.send("POST", "/auth/login", form=form))

    async def logout(self) -> None:
        """End the session."""
        await self._transport.send("POST", "/auth/logout")

    async def me(self) -> UserPublic:
        """Return the user that the credential or session stands for."""
        return read_as(UserPublic, await self._transport.send("GET", "/v2/users/me"))

    async def update_password(self, current: str, new: str) -> None:
        """Change the signed-in user's own password."""
        body = {"current_password": current, "new_password": new}
        await self._transport.send("POST", "/auth/update-password", body=body)

    async def reset_admin_password(self, new: str | None = None) -> str:
        """Give the user ``admin`` a new password, a made-up one for None, and return it.

        Only the token of the server's own machine may do this.
        """
        body = {} if new is None else {"new_password": new}
        answer = await self._transport.send("POST", "/auth/reset-admin-password", body=body)
        if not isinstance(answer, dict) or not isinstance(answer.get("password"), str):
            raise GPUStackError("the server did not say the new password; do the versions match?")
        return str(answer["password"])

    # The server -----------------------------------------------------------------------------------------

    async def version(self) -> VersionInfo:
        """Return what the server says it is."""
        return read_as(VersionInfo, await self._transport.send("GET", "/version"))

    async def gateway(self) -> GatewayPublic:
        """Return what carries the requests for models, and how it is."""
        return read_as(GatewayPublic, await self._transport.send("GET", "/v2/gateway"))

    async def defragmentation(self) -> Defragmentation:
        """Return moves of instances that would make room."""
        return read_as(Defragmentation, await self._transport.send("GET", "/v2/defragmentation"))

    async def plugins(self) -> PluginsPublic:
        """Return what the server's plugins bring, and what of them does not work."""
        return read_as(PluginsPublic, await self._transport.send("GET", "/v2/plugins"))

    async def ready(self) -> bool:
        """Tell whether the server answers that it is ready; False when it cannot be reached."""
        try:
            async with self._transport.stream("GET", "/readyz"):
                return True
        except GPUStackError:
            return False

    def watch(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        silence: float = SILENCE,
        patience: float | None = None,
        on_state: Callable[[str], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the list at ``path`` for ever, through lost connections.

        What exists comes first as CREATED, then one HEARTBEAT, then changes. Things that went unseen during an
        outage come as DELETED with empty ``data``. ``silence`` is the seconds after which a quiet connection
        counts as dead; ``patience`` the seconds without the server after which Unavailable is raised, None for
        never. ``on_state`` hears of trouble with the connection, and with "" of its end. See
        :mod:`gpustack.client.watch`.
        """
        return watch(self._transport, path, params, silence=silence, patience=patience, on_state=on_state)

    # Workers --------------------------------------------------------------------------------------------

    async def fleet(self) -> FleetPublic:
        """Return all workers in short; NotFound from a server older than that."""
        return read_as(FleetPublic, await self._transport.send("GET", "/v2/fleet"))

    async def group_orders(self, instance_id: int) -> GroupOrders:
        """Return what the members of an instance share, to the worker of one of them."""
        return read_as(
            GroupOrders, await self._transport.send("GET", f"/v2/model-instances/{instance_id}/group")
        )

    async def set_maintenance(self, number: int, *, on: bool) -> WorkerPublic:
        """Take a worker out of service, or back."""
        body = {"maintenance": on}
        return read_as(WorkerPublic, await self._transport.send("PUT", f"/v2/workers/{number}", body=body))

    async def set_labels(self, number: int, labels: Mapping[str, str]) -> WorkerPublic:
        """Replace the labels of a worker; those that it gives itself stay."""
        body = {"labels": dict(labels)}
        return read_as(WorkerPublic, await self._transport.send("PUT", f"/v2/workers/{number}", body=body))

    async def worker_challenge(self) -> str:
        """Return what a registration is signed with; NotFound from a server older than that."""
        answer = await self._transport.send("POST", "/v2/worker-challenges")
        return read_as(WorkerChallenge, answer).challenge

    async def register_worker(self, registration: WorkerRegistration) -> WorkerRegistered:
        """Join with the registration token, or renew with a worker's own credential.

        The answer's token is the :attr:`credential` from then on. Unauthenticated: what was shown is not known;
        InvalidInput: the versions do not go together; Conflict: the same worker is alive elsewhere.
        """
        body = registration.model_dump(mode="json")
        return read_as(WorkerRegistered, await self._transport.send("POST", "/v2/workers", body=body))

    async def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Send a sign of life. NotFound: the server has forgotten this worker, which must register again."""
        body = heartbeat.model_dump(mode="json", exclude_none=True)
        await self._transport.send("POST", "/v2/worker-heartbeat", body=body)

    async def report_instance(self, number: int, report: InstanceReport) -> ModelInstancePublic:
        """Report on an instance; only fields that were set are sent.

        Conflict: the step is not allowed, or the instance is no longer this worker's. NotFound: it was deleted.
        """
        path = f"/v2/model-instances/{number}/report"
        return read_as(ModelInstancePublic, await self._transport.send("POST", path, body=as_sent(report)))

    async def report_file(self, number: int, report: ModelFileReport) -> ModelFilePublic:
        """Report on a model file; only fields that were set are sent. NotFound: it was deleted."""
        path = f"/v2/model-files/{number}/report"
        return read_as(ModelFilePublic, await self._transport.send("POST", path, body=as_sent(report)))

    async def report_download(self, report: ModelFileDownload) -> ModelFilePublic:
        """Report how far this worker is with the files of a source."""
        body = as_sent(report)
        return read_as(
            ModelFilePublic, await self._transport.send("POST", "/v2/model-files/downloads", body=body)
        )

    async def explain(self, model_id: int) -> ModelExplanation:
        """Return why the instances of a model are where they are, or nowhere. NotFound without the model."""
        path = f"/v2/models/{model_id}/explain"
        return read_as(ModelExplanation, await self._transport.send("GET", path))

    # Streams --------------------------------------------------------------------------------------------

    async def logs(
        self, number: int, *, tail: int = -1, follow: bool = False, previous: bool = False, member: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield the log of an instance in pieces as they come; ``tail`` is a count of lines, -1 for all.

        With ``follow`` it ends when the instance is deleted. A quiet engine is no reason to stop. ``previous`` asks for
        the log of the start before; NotFound when there was none. ``member`` is one of those on several workers.
        """
        path, params = f"/v2/model-instances/{number}/logs", {"tail": tail, "follow": follow}
        if previous:
            params["previous"] = True
        if member:
            params["member"] = member
        timeout = None if follow else READ_TIMEOUT
        async with self._transport.stream("GET", path, params=params, read_timeout=timeout) as response:
            try:
                async for chunk in response.aiter_bytes():
                    yield chunk
            except httpx.HTTPError as error:
                raise self._transport.trouble(error) from error

    async def decisions(self) -> AsyncGenerator[bytes, None]:
        """Yield what the scheduler decided, as lines of JSON in pieces as they come."""
        async with self._transport.stream("GET", "/v2/decisions", read_timeout=None) as response:
            try:
                async for chunk in response.aiter_bytes():
                    yield chunk
            except httpx.HTTPError as error:
                raise self._transport.trouble(error) from error

    async def chat_stream(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncGenerator[ChatDelta, None]:
        """Yield the pieces of an answer; ``options`` go into the request as they are (``temperature``, …).

        There is no time limit. Closing the iterator stops the engine's work on it.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        async with self._transport.stream(
            "POST", "/v1/chat/completions", body=body, read_timeout=None
        ) as response:
            try:
                async with aclosing(deltas(response.aiter_bytes())) as pieces:
                    async for piece in pieces:
                        yield piece
            except httpx.HTTPError as error:
                raise Unavailable(
                    f"the answer broke off ({self._transport.trouble(error)})", retry_after=1.0
                ) from error
