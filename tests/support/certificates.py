"""Certificates made on the spot."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)


@dataclass(frozen=True)
class Pair:
    """A certificate for this machine, signed by itself, and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Return the certificate's and the key's file."""
        certfile, keyfile = folder / "server.crt", folder / "server.key"
        certfile.write_bytes(self.pem)
        keyfile.write_bytes(self.key_pem())
        return certfile, keyfile


def a_pair(*, days: int = 30, rsa_bits: int = 0) -> Pair:
    key: Any
    key = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
    # A client that trusts several finds the right one by its name.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, uuid.uuid4().hex)])
    now = datetime.now(UTC)
    unsigned = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return Pair(unsigned.sign(key, hashes.SHA256()), key)
