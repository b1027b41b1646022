"""Whether a process traces requests. OpenTelemetry is imported only where it does (cluster/otel.py)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.config import TracingConfig
from cluster.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from cluster.otel import Telemetry

NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def check_tracing(config: TracingConfig) -> None:
    """Raises ConfigError for an endpoint that is none, MissingExtra where the packages are not installed."""
    if not config.endpoint:
        return
    url = urlsplit(config.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(f"{config.endpoint!r} is no OTLP endpoint; give http://HOST:PORT, as --otlp")
    if not all(map(_installed, NEEDED)):
        raise MissingExtra("traces need OpenTelemetry; install it: pip install 'moemesh[otel]'")


def start_tracing(config: TracingConfig, role: str, name: str) -> Telemetry | None:
    """None where tracing is off. name: of the process. Raises as `check_tracing`."""
    if not config.endpoint:
        return None
    check_tracing(config)
    from cluster.otel import Telemetry

    return Telemetry.to(config, role, name)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it
        return False
