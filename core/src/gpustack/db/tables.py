"""The tables, as Piccolo sees them. What creates them is in :mod:`gpustack.db.migrations`; a test compares the two.

Names are plural because ``user`` is a reserved word. Values that are only carried around are JSON; whatever is
searched, sorted or joined by is a column. Nothing here is a PostgreSQL speciality.
"""

from __future__ import annotations

from piccolo.columns import (
    JSON,
    BigInt,
    BigSerial,
    Boolean,
    DoublePrecision,
    ForeignKey,
    Integer,
    SmallInt,
    Text,
    Timestamptz,
    Varchar,
)
from piccolo.columns.base import OnDelete
from piccolo.table import Table

from gpustack.db.dialect import DIALECT


class User(Table, tablename="users", db=DIALECT):
    """Who signs in. ``password_hash`` is empty for users of an external login."""

    id: BigSerial = BigSerial(primary_key=True)
    username = Varchar(length=128, unique=True)
    full_name = Varchar(length=256)
    password_hash = Text()
    is_admin = Boolean(default=False)
    is_active = Boolean(default=True)
    require_password_change = Boolean(default=False)
    source = Varchar(length=32, default="Local")
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class LoginSession(Table, tablename="sessions", db=DIALECT):
    """A signed-in browser; of its token only the digest is kept."""

    id: BigSerial = BigSerial(primary_key=True)
    user_id = ForeignKey(User, on_delete=OnDelete.cascade, null=False, index=True)
    digest = Varchar(length=128, unique=True)
    expires_at = Timestamptz(default=None, index=True)
    created_at = Timestamptz(default=None)


class ApiKey(Table, tablename="api_keys", db=DIALECT):
    """A key for programs; of its secret only the digest is kept."""

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=128)
    description = Text()
    user_id = ForeignKey(User, on_delete=OnDelete.cascade, null=False, index=True)
    access_key = Varchar(length=128, unique=True)
    digest = Varchar(length=128, unique=True)
    allowed_model_names = JSON()
    expires_at = Timestamptz(default=None, null=True)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class Cluster(Table, tablename="clusters", db=DIALECT):
    """A group of workers."""

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=128, unique=True)
    description = Text()
    provider = Varchar(length=64, default="Docker")
    is_default = Boolean(default=False)
    state = Varchar(length=32, default="ready")
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class Worker(Table, tablename="workers", db=DIALECT):
    """A machine. ``gpu_count`` repeats the length of the status's list, to be summed up.

    ``start_id`` is the start that ``session`` numbers, ``earlier_start`` the one before; ``refused_start`` is one that
    turned out to be a second worker with the same identity.
    """

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=160, unique=True)
    hostname = Varchar(length=255)
    ip = Varchar(length=64)
    port = Integer(default=0)
    cluster_id = ForeignKey(Cluster, on_delete=OnDelete.restrict, null=False, index=True)
    worker_uuid = Varchar(length=64, unique=True)
    home = Varchar(length=64)
    public_key = Varchar(length=64, default=None, null=True, unique=True)
    session = BigInt(default=0)
    start_id = Varchar(length=64)
    earlier_start = Varchar(length=64)
    refused_start = Varchar(length=64)
    boot = Varchar(length=64)
    maintenance = Boolean(default=False)
    token_digest = Varchar(length=128, unique=True)
    door_token = Varchar(length=128)
    version = Varchar(length=64)
    state = Varchar(length=32)
    state_message = Text()
    labels = JSON()
    system_reserved = JSON()
    heartbeat_time = Timestamptz(default=None, null=True)
    status = JSON()
    gpu_count = Integer(default=0)
    catalogue = JSON()
    installed_versions = JSON()
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class Model(Table, tablename="models", db=DIALECT):
    """What users want served. ``ready_replicas`` and ``categories`` are found out, not wanted."""

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=128, unique=True)
    description = Text()
    meta = JSON()
    source = Varchar(length=32)
    local_path = Text()
    huggingface_repo_id = Varchar(length=255)
    huggingface_filename = Text()
    huggingface_revision = Varchar(length=255)
    bundled_name = Varchar(length=64)
    replicas = Integer(default=1)
    min_replicas = Integer(default=None, null=True)
    max_replicas = Integer(default=None, null=True)
    autoscaling = JSON()
    priority = Integer(default=0)
    timeouts = JSON()
    queue = JSON()
    ready_replicas = Integer(default=0)
    categories = JSON()
    placement_strategy = Varchar(length=32)
    worker_selector = JSON()
    gpu_selector = JSON(default=None, null=True)
    distributed_inference_across_workers = Boolean(default=True)
    backend = Varchar(length=64)
    backend_version = Varchar(length=64)
    backend_parameters = JSON()
    image_name = Varchar(length=512)
    run_command = Text()
    backend_packages = JSON()
    env = JSON()
    restart_on_error = Boolean(default=True)
    rollout = JSON()
    spec_digest = Varchar(length=64)
    cluster_id = ForeignKey(Cluster, on_delete=OnDelete.restrict, null=False, index=True)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class InferenceBackend(Table, tablename="inference_backends", db=DIALECT):
    """A backend that people described: one of their own, or more versions of one that a plugin brings."""

    id: BigSerial = BigSerial(primary_key=True)
    backend_name = Varchar(length=64, unique=True)
    version_configs = JSON()
    default_version = Varchar(length=64)
    default_backend_param = JSON()
    default_run_command = Text()
    default_entrypoint = Text()
    default_env = JSON()
    health_check_path = Text()
    parameter_format = Varchar(length=16)
    description = Text()
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class ModelRoute(Table, tablename="model_routes", db=DIALECT):
    """A name that requests ask for. Its names are unique by :class:`ModelRouteName`."""

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=128)
    description = Text()
    aliases = JSON()
    fallback_status_codes = JSON()
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class ModelRouteName(Table, tablename="model_route_names", db=DIALECT):
    """Every name and alias of a route once: what keeps them apart."""

    name = Varchar(length=128, primary_key=True)
    route_id = ForeignKey(ModelRoute, on_delete=OnDelete.cascade, null=False, index=True)


class ModelRouteTarget(Table, tablename="model_route_targets", db=DIALECT):
    """A model that answers for a route; unique by both."""

    id: BigSerial = BigSerial(primary_key=True)
    route_id = ForeignKey(ModelRoute, on_delete=OnDelete.cascade, null=False, index=True)
    # No foreign key: without its model, the target stays and says so.
    model_id = BigInt(default=None, null=True, index=True)
    model_name = Varchar(length=128, index=True)
    weight = Integer(default=100)
    is_fallback = Boolean(default=False)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class ModelInstance(Table, tablename="model_instances", db=DIALECT):
    """One copy of a model. Names of model and worker are repeated so that a list is one query."""

    id: BigSerial = BigSerial(primary_key=True)
    name = Varchar(length=255, unique=True)
    # No foreign key: an instance outlives its model while it drains.
    model_id = BigInt(null=False, index=True)
    model_name = Varchar(length=128)
    cluster_id = ForeignKey(Cluster, on_delete=OnDelete.restrict, null=False, index=True)
    state = Varchar(length=32)
    state_message = Text()
    state_since = Timestamptz(default=None)
    worker_id = ForeignKey(Worker, on_delete=OnDelete.cascade, null=True, index=True)
    worker_name = Varchar(length=160)
    worker_ip = Varchar(length=64)
    pid = BigInt(default=None, null=True)
    port = Integer(default=None, null=True)
    ports = JSON()
    resolved_path = Text()
    backend = Varchar(length=64)
    backend_version = Varchar(length=64)
    computed_resource_claim = JSON()
    memory = JSON()
    gpu_indexes = JSON()
    resolved_revision = Varchar(length=64)
    download_progress = DoublePrecision(default=0.0)
    draining_since = Timestamptz(default=None, null=True)
    drain_seconds = Integer(default=0)
    spec_digest = Varchar(length=64)
    restart_count = Integer(default=0)
    last_restart_time = Timestamptz(default=None, null=True)
    members = JSON()
    #: The workers of members but the leader's, with a space before and after each id: what lists by worker look in.
    follower_ids = Text(default=" ")
    attempt = Integer(default=0)
    failed_attempts = Integer(default=0)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class ModelFile(Table, tablename="model_files", db=DIALECT):
    """What one worker knows of one source; unique by both."""

    id: BigSerial = BigSerial(primary_key=True)
    worker_id = ForeignKey(Worker, on_delete=OnDelete.cascade, null=False, index=True)
    source = Varchar(length=32)
    local_path = Text()
    huggingface_repo_id = Varchar(length=255)
    huggingface_filename = Text()
    huggingface_revision = Varchar(length=255)
    bundled_name = Varchar(length=64)
    resolved_revision = Varchar(length=64)
    source_key = Varchar(length=64, index=True)
    state = Varchar(length=32)
    state_message = Text()
    request = Integer(default=1)
    size = BigInt(default=0)
    downloaded_size = BigInt(default=0)
    download_rate = BigInt(default=0)
    resolved_paths = JSON()
    facts = JSON(default=None, null=True)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class WorkerEngine(Table, tablename="worker_engines", db=DIALECT):
    """An environment of an engine on one worker, there or asked for; unique by worker and key."""

    id: BigSerial = BigSerial(primary_key=True)
    worker_id = ForeignKey(Worker, on_delete=OnDelete.cascade, null=False, index=True)
    backend = Varchar(length=64)
    version = Varchar(length=64)
    packages = JSON()
    engine_key = Varchar(length=64)
    state = Varchar(length=32)
    state_message = Text()
    request = Integer(default=0)
    disk = BigInt(default=0)
    last_used_at = Timestamptz(default=None, null=True)
    created_at = Timestamptz(default=None)
    updated_at = Timestamptz(default=None)


class InstanceEvent(Table, tablename="instance_events", db=DIALECT):
    """What happened to instances, kept for whoever asks why; it outlives instance, model and worker."""

    id: BigSerial = BigSerial(primary_key=True)
    model_id = BigInt(index=True)
    model_name = Varchar(length=128, index=True)
    instance_id = BigInt(index=True)
    instance_name = Varchar(length=255)
    worker_name = Varchar(length=160)
    what = Varchar(length=32)
    message = Text()
    restart_count = Integer(default=0)
    created_at = Timestamptz(default=None, index=True)
    updated_at = Timestamptz(default=None)


class UsageRow(Table, tablename="usage_records", db=DIALECT):
    """What one request took; the id is the gateway's. Users, keys and models may be gone long since."""

    id = Varchar(length=64, primary_key=True)
    ended_at = Timestamptz(default=None, index=True)
    route = Varchar(length=255)
    model = Varchar(length=255)
    instance_id = BigInt(default=None, null=True)
    user_id = BigInt(default=None, null=True)
    key_id = BigInt(default=None, null=True)
    operation = Varchar(length=64)
    status = SmallInt()
    prompt_tokens = BigInt(default=0)
    cached_tokens = BigInt(default=0)
    completion_tokens = BigInt(default=0)
    time_to_first_token = DoublePrecision(default=None, null=True)
    between_tokens = DoublePrecision(default=None, null=True)
    duration = DoublePrecision(default=0.0)
    queued = DoublePrecision(default=0.0)
    estimated = Boolean(default=False)
    request_id = Varchar(length=128, default="", index=True)


class DecisionPage(Table, tablename="decision_pages", db=DIALECT):
    """Decisions of one run of the scheduler, packed; unique by run and number. Those after a whole page are read with it."""

    id: BigSerial = BigSerial(primary_key=True)
    run = Varchar(length=32)
    number = BigInt()
    whole = Boolean()
    decisions = Integer()
    body = Text()
    created_at = Timestamptz(default=None)


class DecisionRow(Table, tablename="decisions", db=DIALECT):
    """Where in its page a decision is found, by what it was about."""

    id: BigSerial = BigSerial(primary_key=True)
    page_id = ForeignKey(DecisionPage, on_delete=OnDelete.cascade, null=False, index=True)
    place = Integer()
    model_id = BigInt(index=True)
    instance_id = BigInt(index=True)
    worker_id = BigInt(default=None, null=True)
    decided_at = Timestamptz(default=None)


class EventRow(Table, tablename="events", db=DIALECT):
    """What changed, in the order of commits."""

    number = BigInt(default=None, primary_key=True)
    topic = Varchar(length=32)
    type = SmallInt()
    object_id = BigInt()
    data = JSON()
    changed_fields = JSON()
    created_at = Timestamptz(default=None)


class EventCounter(Table, tablename="event_counter", db=DIALECT):
    """One row: the number of the last event. Whoever increments it holds its lock until the commit."""

    id = SmallInt(primary_key=True, default=1)
    value = BigInt(default=0)
