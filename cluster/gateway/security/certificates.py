"""The server's certificate, key and the authority of its clients, in force as soon as they are replaced."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from cluster.config import TlsFiles
from cluster.errors import ConfigError
from cluster.gateway.security.watched import Watched


@dataclass(frozen=True)
class Material:
    """What the files held at one moment, checked: the key belongs to the certificate."""

    context: ssl.SSLContext
    grpc: grpc.ServerCertificateConfiguration


class Certificates:
    """For both servers of a gateway. Connections that exist keep what they began with."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError for files that are missing or do not belong together."""
        paths = [Path(files.certificate), Path(files.key)]
        if files.client_ca:
            paths.append(Path(files.client_ca))
        self._files = files
        self._material = Watched(paths, lambda: read(files))

    def for_http(self) -> ssl.SSLContext:
        """A context that takes over the newest one at the start of every handshake."""

        def renew(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
            connection.context = self._material.current().context

        # Its own, not one of those that `renew` hands out: they have no callback.
        entry = read(self._files).context
        entry.sni_callback = renew
        return entry

    def for_grpc(self) -> grpc.ServerCredentials:
        """Credentials that ask for the newest files at the start of every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._material.current().grpc,
            lambda: self._material.current().grpc,
            require_client_authentication=bool(self._files.client_ca),
        )


def read(files: TlsFiles) -> Material:
    """Raises ConfigError, naming the file."""
    context = _context()
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"no TLS with {files.certificate} and {files.key} ({error}); "
            "both must be PEM and belong together: see `moemesh keys certificate`"
        ) from None
    if files.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{files.client_ca} is no PEM of an authority ({error})") from None
    pair = (Path(files.key).read_bytes(), Path(files.certificate).read_bytes())
    roots = Path(files.client_ca).read_bytes() if files.client_ca else None
    return Material(context, grpc.ssl_server_certificate_configuration([pair], roots))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would go by the certificates of its first handshake.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context
