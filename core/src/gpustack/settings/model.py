"""The core's options: each declared once, with its names, type, default, group and help; typed, checked, frozen.

Plugins declare theirs the same way, in the ``settings_type`` of an extension.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpustack.kit.paths import default_data_dir
from gpustack.settings.gateway import NO_GATEWAY, ChosenGateway
from gpustack.settings.kinds import (
    AbsolutePath,
    DatabaseUrl,
    Days,
    DnsLabel,
    DnsName,
    FixedPort,
    Host,
    HttpMethods,
    HttpNames,
    HttpUrl,
    Image,
    Networks,
    Origins,
    Password,
    PathOrUrl,
    Port,
    PortRange,
    Ports,
    Program,
    Registry,
    Repository,
    Seconds,
    SharedSecret,
    SystemReserved,
    Text,
    Timeout,
)
from gpustack.settings.option import Option
from gpustack.settings.resources import Resources

_METRICS = "metrics"
_KUBERNETES = "Kubernetes"


class Settings(BaseModel):
    """The effective settings of one ``gpustack start``. Field names are the keys of the YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Common ---------------------------------------------------------------------------------------------

    advertise_address: Annotated[
        Host,
        Option(
            group="Common",
            value="ADDRESS",
            help="The IP address to expose for external access. If not set, a suitable local one is detected.",
        ),
    ] = ""
    port: Annotated[Port, Option(group="Common", help="Port to bind the server to.")] = 80
    tls_port: Annotated[
        Port,
        Option(
            group="Common",
            help="Port to bind the TLS server to. Used when --ssl-certfile and --ssl-keyfile are given.",
        ),
    ] = 443
    config_file: Annotated[
        AbsolutePath | None, Option(group="Common", value="PATH", help="Path to the YAML config file.")
    ] = None
    debug: Annotated[bool, Option(group="Common", short="-d", reload=True, help="To enable debug mode.")] = (
        False
    )
    data_dir: Annotated[
        AbsolutePath, Option(group="Common", help="Directory to store data. Default is OS specific.")
    ] = Field(default_factory=default_data_dir)
    cache_dir: Annotated[
        AbsolutePath,
        Option(
            group="Common",
            default_text="<data-dir>/cache",
            help="Directory to store cache (e.g., model files).",
        ),
    ] = Path()
    huggingface_token: Annotated[
        Text,
        Option(
            group="Common",
            value="TOKEN",
            secret=True,
            also="HF_TOKEN",
            reload=True,
            help="User Access Token to authenticate to the Hugging Face Hub. Can also be configured via the "
            "HF_TOKEN environment variable.",
        ),
    ] = ""
    hf_endpoint: Annotated[
        HttpUrl,
        Option(
            group="Common",
            flag=False,
            variable="HF_ENDPOINT",
            help="Hugging Face Hub endpoint. e.g., https://hf-mirror.com",
        ),
    ] = ""
    hf_hub_offline: Annotated[
        bool,
        Option(
            group="Common",
            flag=False,
            variable="HF_HUB_OFFLINE",
            help="Ask no hub: models come from the cache alone.",
        ),
    ] = False
    ray_node_manager_port: Annotated[
        FixedPort,
        Option(group="Common", help="Port of Ray node manager. Used when Ray is enabled."),
    ] = 40098
    ray_object_manager_port: Annotated[
        FixedPort,
        Option(group="Common", help="Port of Ray object manager. Used when Ray is enabled."),
    ] = 40099
    ray_runtime_env_agent_port: Annotated[
        FixedPort,
        Option(group="Common", help="Port of Ray runtime env agent. Used when Ray is enabled."),
    ] = 40100
    ray_dashboard_agent_grpc_port: Annotated[
        FixedPort,
        Option(
            group="Common",
            help="Port for Ray dashboard agent gRPC listen. Used when Ray is enabled.",
        ),
    ] = 40101
    ray_dashboard_agent_listen_port: Annotated[
        FixedPort,
        Option(
            group="Common",
            help="Port for Ray dashboard agent HTTP listen. Used when Ray is enabled.",
        ),
    ] = 52365
    ray_metrics_export_port: Annotated[
        FixedPort,
        Option(group="Common", help="Port for Ray metrics export. Used when Ray is enabled."),
    ] = 40103
    bin_dir: Annotated[
        AbsolutePath,
        Option(
            group="Common",
            default_text="<data-dir>/bin",
            help="Directory to store additional binaries, e.g., versioned backend executables.",
        ),
    ] = Path()
    #: Empty is the pipx that came with GPUStack, or the one on PATH.
    pipx_path: Annotated[
        Program,
        Option(
            group="Common",
            value="PATH",
            help="Path to the pipx executable, used to install versioned backends.",
        ),
    ] = ""
    system_default_container_registry: Annotated[
        Registry,
        Option(
            group="Common",
            value="REGISTRY",
            help="Default container registry for GPUStack to pull system images.",
        ),
    ] = "docker.io"
    image_name_override: Annotated[
        Image,
        Option(
            group="Common",
            value="IMAGE",
            help="Override the default image name for the GPUStack container.",
        ),
    ] = ""
    image_repo: Annotated[
        Repository,
        Option(
            group="Common",
            value="REPOSITORY",
            help="Override the default image repository for the GPUStack container.",
        ),
    ] = "gpustack/gpustack"
    service_discovery_name: Annotated[
        DnsName,
        Option(
            group="Common",
            value="NAME",
            later=_KUBERNETES,
            refused=True,
            help="The name of the service discovery service in DNS. Only useful when deployed in Kubernetes with "
            "service discovery.",
        ),
    ] = ""
    namespace: Annotated[
        DnsLabel,
        Option(
            group="Common",
            value="NAME",
            also="POD_NAMESPACE",
            later=_KUBERNETES,
            refused=True,
            help="Kubernetes namespace for GPUStack to deploy gateway routing rules and model instances. Can also "
            "be configured via the POD_NAMESPACE environment variable.",
        ),
    ] = ""

    # Server ---------------------------------------------------------------------------------------------

    api_port: Annotated[
        Port,
        Option(
            help="Port to bind the gpustack server to. It is open to this machine alone: others use --port."
        ),
    ] = 8080
    metrics_port: Annotated[Port, Option(later=_METRICS, help="Port to expose server metrics.")] = 10161
    disable_metrics: Annotated[
        bool,
        Option(later=_METRICS, help="Disable server metrics. In the config file: those of the worker, too."),
    ] = False
    disable_worker: Annotated[bool, Option(help="Disable built-in worker.")] = False
    bootstrap_password: Annotated[
        Password | None,
        Option(
            value="PASSWORD",
            default_text="Auto-generated.",
            secret=True,
            help="Initial password for the default admin user.",
        ),
    ] = None
    #: Empty is the embedded PostgreSQL.
    database_url: Annotated[
        DatabaseUrl,
        Option(
            value="URL",
            default_text="Embedded PostgreSQL.",
            secret=True,
            help="URL of the database. Supports PostgreSQL 13.0+, and what plugins bring. "
            "Example: postgresql://user:password@host:port/db_name",
        ),
    ] = ""
    ssl_keyfile: Annotated[
        AbsolutePath | None, Option(value="PATH", reload=True, help="Path to the SSL key file.")
    ] = None
    ssl_certfile: Annotated[
        AbsolutePath | None, Option(value="PATH", reload=True, help="Path to the SSL certificate file.")
    ] = None
    force_auth_localhost: Annotated[
        bool,
        Option(
            later="unauthenticated requests from localhost",
            help="Force authentication for requests originating from localhost (127.0.0.1).",
        ),
    ] = False
    disable_update_check: Annotated[bool, Option(reload=True, help="Disable update check.")] = False
    update_check_url: Annotated[
        HttpUrl,
        Option(
            value="URL",
            reload=True,
            help="Where the version document is that the update check reads once a day.",
        ),
    ] = "https://update-service.gpustack.ai"
    disable_openapi_docs: Annotated[
        bool,
        Option(
            help="Disable autogenerated OpenAPI documentation endpoints (Swagger UI at /docs, ReDoc at /redoc, "
            "and the raw spec at /openapi.json)."
        ),
    ] = False
    replace_after: Annotated[
        Seconds,
        Option(
            value="SECONDS",
            unit="s",
            help="How long copies of models on a worker that is lost from sight keep their place, before they are "
            "started elsewhere. Below 60 the first workers of a fleet that is cut off may be given up before it is "
            "known that most are.",
        ),
    ] = 60.0
    model_catalog_file: Annotated[
        PathOrUrl,
        Option(
            value="PATH|URL",
            later="model catalogs from a file",
            help="Path or URL to the model catalog file.",
        ),
    ] = ""
    ray_port: Annotated[FixedPort, Option(help="Port of Ray (GCS server). Used when Ray is enabled.")] = 40096
    ray_client_server_port: Annotated[
        FixedPort, Option(help="Port of Ray Client Server. Used when Ray is enabled.")
    ] = 40097
    ray_dashboard_port: Annotated[
        FixedPort, Option(help="Port of Ray dashboard. Used when Ray is enabled.")
    ] = 8265
    enable_cors: Annotated[
        bool, Option(reload=True, help="Enable Cross-Origin Resource Sharing (CORS) on the server.")
    ] = False
    allow_credentials: Annotated[
        bool, Option(reload=True, help="Allow cookies and credentials in cross-origin requests.")
    ] = False
    allow_origins: Annotated[
        Origins,
        Option(
            value="ORIGIN",
            reload=True,
            help="Origins allowed for cross-origin requests. Specify the flag multiple times for multiple "
            "origins. Example: --allow-origins https://example.com --allow-origins https://api.example.com",
        ),
    ] = ("*",)
    allow_methods: Annotated[
        HttpMethods,
        Option(
            value="METHOD",
            reload=True,
            help="HTTP methods allowed in cross-origin requests. Specify the flag multiple times for multiple "
            "methods. Example: --allow-methods GET --allow-methods POST",
        ),
    ] = ("GET", "POST")
    allow_headers: Annotated[
        HttpNames,
        Option(
            value="HEADER",
            reload=True,
            help="HTTP request headers allowed in cross-origin requests. Specify the flag multiple times for "
            "multiple headers. Example: --allow-headers Authorization --allow-headers Content-Type",
        ),
    ] = ("Authorization", "Content-Type")
    trusted_proxies: Annotated[
        Networks,
        Option(
            value="NETWORK",
            help="Proxies before GPUStack, by address or network, whose X-Forwarded-For and X-Forwarded-Proto are "
            "believed: what they say is used in logs and by the server. Specify the flag multiple times for multiple "
            "ones. Example: --trusted-proxies 10.0.0.9 --trusted-proxies 10.1.0.0/24",
        ),
    ] = ()
    gateway_header_timeout: Annotated[
        Timeout,
        Option(
            value="SECONDS",
            help="How long a client may take for the request line and the headers of a request.",
        ),
    ] = 20.0
    gateway_body_timeout: Annotated[
        Timeout,
        Option(
            value="SECONDS",
            help="How long a client may be silent within the body of a request. All of it has that time as well, "
            "and what its size takes at 16 KB a second, 64 KB beyond the first megabyte.",
        ),
    ] = 30.0
    gateway_keep_alive_timeout: Annotated[
        Timeout,
        Option(value="SECONDS", help="How long a connection that is not used is kept open for a client."),
    ] = 75.0
    server_external_url: Annotated[
        HttpUrl,
        Option(
            value="URL",
            help="The external server URL for worker registration: the join command names it, so that workers "
            "elsewhere, such as those of cloud providers, can connect to the server.",
        ),
    ] = ""

    # Worker ---------------------------------------------------------------------------------------------

    #: Empty lets the server make one, which it keeps in its data directory.
    token: Annotated[
        SharedSecret,
        Option(
            group="Worker",
            value="TOKEN",
            short="-t",
            default_text="Auto-generated.",
            secret=True,
            help="Shared secret used to register worker. A typed one shows in `ps`: prefer --token-file.",
        ),
    ] = ""
    #: None when the token was given by itself.
    token_file: Annotated[
        AbsolutePath | None,
        Option(
            group="Worker",
            value="PATH",
            help="File that holds the token, e.g. a copy of <data-dir>/token of the server.",
        ),
    ] = None
    #: Empty makes this machine the server.
    server_url: Annotated[
        HttpUrl, Option(group="Worker", value="URL", short="-s", help="Server to connect to.")
    ] = ""
    #: Empty is the host's name.
    worker_name: Annotated[
        Text,
        Option(group="Worker", value="NAME", help="Name of the worker node. Use the hostname by default."),
    ] = ""
    worker_ip: Annotated[
        Host,
        Option(
            group="Worker",
            value="ADDRESS",
            successor="advertise_address",
            help="Deprecated, use advertise-address instead.",
        ),
    ] = ""
    disable_worker_metrics: Annotated[
        bool, Option(group="Worker", later=_METRICS, help="Disable metrics.")
    ] = False
    worker_metrics_port: Annotated[
        Port, Option(group="Worker", later=_METRICS, help="Port to expose metrics.")
    ] = 10151
    worker_port: Annotated[
        Port,
        Option(
            group="Worker",
            help="Port to bind the worker to; 0 takes any free one. Use a consistent value for all workers.",
        ),
    ] = 10150
    service_port_range: Annotated[
        Ports,
        Option(
            group="Worker",
            help="Port range for inference services, specified as a string in the form 'N1-N2'. Both ends of the "
            "range are inclusive.",
        ),
    ] = PortRange(first=40000, last=40063)
    distributed_worker_port_range: Annotated[
        Ports,
        Option(
            group="Worker",
            help="Generic port range for distributed worker processes (e.g., NCCL/TCP communication), specified as "
            "a string in the form 'N1-N2'. Both ends of the range are inclusive.",
        ),
    ] = PortRange(first=40200, last=40999)
    log_dir: Annotated[
        AbsolutePath,
        Option(group="Worker", default_text="<data-dir>/log", help="Directory to store logs."),
    ] = Path()
    system_reserved: Annotated[
        SystemReserved,
        Option(
            group="Worker",
            value="JSON",
            unit="GiB",
            help="The system reserves resources for the worker during scheduling, measured in GiB. By default, "
            "2 GiB of RAM and 1G of VRAM is reserved.",
        ),
    ] = SystemReserved()
    resources: Annotated[
        Resources | None,
        Option(
            group="Worker",
            flag=False,
            help="What this machine has, in the place of what is detected: cpu, memory, swap and gpu_devices.",
        ),
    ] = None
    keep_unused_engines: Annotated[
        Days,
        Option(
            group="Worker",
            value="DAYS",
            unit="days",
            help="How long an installed version of an engine is kept that nothing runs from and no model wants; 0 keeps "
            "all for ever.",
        ),
    ] = 30.0
    tools_download_base_url: Annotated[
        HttpUrl,
        Option(
            group="Worker",
            value="URL",
            help="Base URL for downloading dependency tools: engines that come as archives are fetched from the same "
            "paths below it instead of from their projects.",
        ),
    ] = ""
    enable_hf_transfer: Annotated[
        bool,
        Option(group="Worker", help="Enable faster downloads from the Hugging Face Hub using hf_transfer."),
    ] = False
    enable_hf_xet: Annotated[
        bool, Option(group="Worker", help="Enable downloading model files using Hugging Face Xet.")
    ] = False
    worker_ifname: Annotated[
        Text,
        Option(
            group="Worker",
            value="NAME",
            help="Network interface name of the worker node. Auto-detected by default.",
        ),
    ] = ""

    #: What was given for the options of plugins, by name, as JSON can hold it.
    plugins: dict[str, Any] = {}
    #: Every option as people may see it, with its origin; see :func:`gpustack.settings.shown.shown`.
    effective: tuple[dict[str, Any], ...] = ()
    #: The gateway that ``gateway_mode`` means, and what it has to have run. Found out where the plugins are known, so that
    #: the supervisor needs none of them.
    gateway: ChosenGateway = NO_GATEWAY

    @property
    def ray_node_ports(self) -> dict[str, int]:
        """The ports of a node of Ray, by the names of :data:`gpustack.worker.runners.ray.NODE`."""
        return {
            "node_manager": self.ray_node_manager_port,
            "object_manager": self.ray_object_manager_port,
            "runtime_env_agent": self.ray_runtime_env_agent_port,
            "agent_grpc": self.ray_dashboard_agent_grpc_port,
            "agent_listen": self.ray_dashboard_agent_listen_port,
            "metrics": self.ray_metrics_export_port,
        }

    @model_validator(mode="before")
    @classmethod
    def _places_below_data_dir(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        data_dir = values.get("data_dir") or default_data_dir()
        below = {f"{name}_dir": str(Path(str(data_dir)) / name) for name in ("bin", "log", "cache")}
        return {**below, **values}
