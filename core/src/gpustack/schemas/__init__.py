"""The wire models of the HTTP API, shared by server, worker, client and command line.

``…Create`` and ``…Update`` are what clients send: unknown fields are refused. ``…Public`` is what the server
answers: unknown fields are ignored, so that a client one version older still reads it. Sizes are bytes and
times are UTC, unless a field says otherwise.
"""

from gpustack.schemas.auth import (
    Login,
    LoginReply,
    PasswordChange,
    PasswordReset,
    PasswordResetReply,
    VersionInfo,
)
from gpustack.schemas.backends import BackendVersionConfig, InferenceBackendPublic, Runner
from gpustack.schemas.clusters import ClusterPublic
from gpustack.schemas.common import ErrorBody, Event, EventType, Page, Pagination
from gpustack.schemas.config import ConfigPublic
from gpustack.schemas.defragmentation import Defragmentation, DefragmentationStep, FreedGpu, RoomForInstance
from gpustack.schemas.instances import (
    Claim,
    InstanceEventPublic,
    InstanceMemory,
    InstanceReport,
    InstanceState,
    MeasuredPeak,
    ModelInstancePublic,
)
from gpustack.schemas.keys import ApiKeyCreate, ApiKeyCreated, ApiKeyPublic
from gpustack.schemas.model_files import (
    FactsDocument,
    ModelFileDownload,
    ModelFilePublic,
    ModelFileReport,
    ModelFileState,
)
from gpustack.schemas.model_routes import (
    ModelRouteAddTargets,
    ModelRouteCreate,
    ModelRoutePatch,
    ModelRoutePublic,
    ModelRouteTargetCreate,
    ModelRouteTargetPublic,
    ModelRouteTargetUpdate,
    ModelRouteUpdate,
)
from gpustack.schemas.model_sets import ModelSetPublic, ModelSpecPublic
from gpustack.schemas.models import (
    ModelCreate,
    ModelPatch,
    ModelPublic,
    ModelUpdate,
    PlacementStrategy,
    Rollout,
    Source,
    source_key,
    source_name,
)
from gpustack.schemas.serving import Autoscaling, ModelQueue, ModelTimeouts
from gpustack.schemas.updates import UpdatePublic
from gpustack.schemas.users import UserPublic, UserSelfUpdate
from gpustack.schemas.workers import (
    CpuStatus,
    FilesystemStatus,
    FleetPublic,
    GpuCore,
    GpuDevicePublic,
    GpuMemory,
    GpuProcessStatus,
    GpuStatus,
    Heartbeat,
    MemoryStatus,
    WorkerChallenge,
    WorkerProof,
    WorkerPublic,
    WorkerRegistered,
    WorkerRegistration,
    WorkerState,
    WorkerStatus,
)

__all__ = [
    "ApiKeyCreate",
    "ApiKeyCreated",
    "ApiKeyPublic",
    "Autoscaling",
    "BackendVersionConfig",
    "Claim",
    "ClusterPublic",
    "ConfigPublic",
    "CpuStatus",
    "Defragmentation",
    "DefragmentationStep",
    "ErrorBody",
    "Event",
    "EventType",
    "FactsDocument",
    "FilesystemStatus",
    "FleetPublic",
    "FreedGpu",
    "GpuCore",
    "GpuDevicePublic",
    "GpuMemory",
    "GpuProcessStatus",
    "GpuStatus",
    "Heartbeat",
    "InferenceBackendPublic",
    "InstanceEventPublic",
    "InstanceMemory",
    "InstanceReport",
    "InstanceState",
    "Login",
    "LoginReply",
    "MeasuredPeak",
    "MemoryStatus",
    "ModelCreate",
    "ModelFileDownload",
    "ModelFilePublic",
    "ModelFileReport",
    "ModelFileState",
    "ModelInstancePublic",
    "ModelPatch",
    "ModelPublic",
    "ModelQueue",
    "ModelRouteAddTargets",
    "ModelRouteCreate",
    "ModelRoutePatch",
    "ModelRoutePublic",
    "ModelRouteTargetCreate",
    "ModelRouteTargetPublic",
    "ModelRouteTargetUpdate",
    "ModelRouteUpdate",
    "ModelSetPublic",
    "ModelSpecPublic",
    "ModelTimeouts",
    "ModelUpdate",
    "Page",
    "Pagination",
    "PasswordChange",
    "PasswordReset",
    "PasswordResetReply",
    "PlacementStrategy",
    "Rollout",
    "RoomForInstance",
    "Runner",
    "Source",
    "UpdatePublic",
    "UserPublic",
    "UserSelfUpdate",
    "VersionInfo",
    "WorkerChallenge",
    "WorkerProof",
    "WorkerPublic",
    "WorkerRegistered",
    "WorkerRegistration",
    "WorkerState",
    "WorkerStatus",
    "source_key",
    "source_name",
]
