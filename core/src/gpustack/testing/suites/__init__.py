"""A contract suite for each kind of extension; a plugin's test file is a subclass of one.

The suites are plain pytest classes and need nothing but pytest. What fails says what the contract wants, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gpustack.testing.suites.backend import InferenceBackendSuite
from gpustack.testing.suites.base import ExtensionSuite
from gpustack.testing.suites.databases import DatabaseSuite
from gpustack.testing.suites.detectors import GpuDetectorSuite, SystemDetectorSuite
from gpustack.testing.suites.gateway import GatewaySuite
from gpustack.testing.suites.gateway_traffic import GatewayTrafficSuite
from gpustack.testing.suites.login import AuthProviderSuite
from gpustack.testing.suites.models import BundledModelSuite
from gpustack.testing.suites.web import WebAppSuite

#: By the field of the catalogue.
SUITES: Mapping[str, type[ExtensionSuite[Any]]] = MappingProxyType(
    {
        suite.kind: suite
        for suite in (
            InferenceBackendSuite,
            GpuDetectorSuite,
            SystemDetectorSuite,
            BundledModelSuite,
            WebAppSuite,
            DatabaseSuite,
            GatewaySuite,
            AuthProviderSuite,
        )
    }
)

__all__ = [
    "SUITES",
    "AuthProviderSuite",
    "BundledModelSuite",
    "DatabaseSuite",
    "ExtensionSuite",
    "GatewaySuite",
    "GatewayTrafficSuite",
    "GpuDetectorSuite",
    "InferenceBackendSuite",
    "SystemDetectorSuite",
    "WebAppSuite",
]
