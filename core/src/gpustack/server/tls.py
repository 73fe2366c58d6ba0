"""The server's certificate: checked when it is read, and read anew when its files change, without a restart."""

from __future__ import annotations

import functools
import logging
import re
import ssl
from pathlib import Path
from typing import NoReturn

from gpustack.kit.errors import SettingsError

log = logging.getLogger(__name__)

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")

#: What OpenSSL says when key and certificate are no pair; the last one when they are of different kinds.
_NO_PAIR = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

#: Modification time, size and inode of a file; None when there is none.
_Stamp = tuple[int, int, int] | None


class Certificates:
    """A certificate with its key, as :attr:`context` offers it to whoever connects.

    Raises SettingsError with one line when the files are no usable pair. When they change later, connections from then on
    get what is new; while that is not usable the former pair is served on, for tools that renew certificates replace
    one file after the other.
    """

    def __init__(self, certfile: Path, keyfile: Path) -> None:
        self.use(certfile, keyfile)
        #: What to listen with. It stays the same: each handshake takes the certificate of the moment.
        self.context = self._current
        self.context.sni_callback = self._choose

    def use(self, certfile: Path, keyfile: Path) -> None:
        """Offer the pair in these files from now on; raises SettingsError, and changes nothing, when it is not usable."""
        # Before they are read: what is written meanwhile is noticed by the next handshake.
        seen = _stamps(certfile, keyfile)
        self._current = _context(certfile, keyfile)
        self._certfile, self._keyfile, self._seen = certfile, keyfile, seen

    def reload(self) -> None:
        """Read the files anew; raises SettingsError, and keeps the former pair, when they are not usable."""
        # Also where it fails: that is said once, and they are read again when they change again.
        self._seen = _stamps(self._certfile, self._keyfile)
        self.use(self._certfile, self._keyfile)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _of: ssl.SSLContext) -> None:
        """Give a handshake the certificate of the moment; OpenSSL asks with and without a server name."""
        try:
            self._renew()
        except Exception:  # raising would only turn the client away
            log.exception("certificate %s: looking for changes failed", self._certfile)
        connection.context = self._current

    def _renew(self) -> None:
        if _stamps(self._certfile, self._keyfile) == self._seen:
            return
        try:
            self.reload()
        except SettingsError as error:
            log.warning("the new certificate cannot be used, and the former one is served on: %s", error)
        else:
            log.info("certificate %s: it has changed, and is served from now on", self._certfile)


def _stamps(certfile: Path, keyfile: Path) -> tuple[_Stamp, _Stamp]:
    return _stamp(certfile), _stamp(keyfile)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _context(certfile: Path, keyfile: Path) -> ssl.SSLContext:
    _refuse_other_content(certfile, keyfile)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a function OpenSSL would ask for the passphrase on the terminal.
        context.load_cert_chain(certfile, keyfile, password=functools.partial(_refuse_passphrase, keyfile))
    except OSError as error:
        raise SettingsError(_why_unusable(certfile, keyfile, error)) from error
    return context


def _refuse_other_content(certfile: Path, keyfile: Path) -> None:
    certificate, key = _read_both(("--ssl-certfile", certfile), ("--ssl-keyfile", keyfile))
    no_certificate, no_key = not _CERTIFICATE.search(certificate), not _PRIVATE_KEY.search(key)
    if no_certificate and no_key and _PRIVATE_KEY.search(certificate) and _CERTIFICATE.search(key):
        raise SettingsError(
            f"--ssl-certfile {certfile} holds the private key, and --ssl-keyfile {keyfile} the certificate; swap them"
        )
    if no_certificate:
        raise SettingsError(
            f"--ssl-certfile {certfile} has no certificate in PEM form; give a file with -----BEGIN CERTIFICATE----- in it"
        )
    if no_key:
        raise SettingsError(
            f"--ssl-keyfile {keyfile} has no private key in PEM form; give a file with -----BEGIN PRIVATE KEY----- in it"
        )


def _read_both(*files: tuple[str, Path]) -> list[bytes]:
    """Return what is in the files. Raises SettingsError with a line for each that cannot be read."""
    contents, problems = [], []
    for option, path in files:
        try:
            contents.append(_read(option, path))
        except SettingsError as error:
            problems.append(error.message)
    if problems:
        raise SettingsError("\n".join(problems))
    return contents


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SettingsError(
            f"{option} {path} cannot be read: {why}; give a file that the user of the server may read"
        ) from error


def _refuse_passphrase(keyfile: Path) -> NoReturn:
    raise SettingsError(
        f"--ssl-keyfile {keyfile} is protected by a passphrase, which nobody is there to type; "
        f"take it off: openssl pkey -in {keyfile} -out NEW_FILE"
    )


def _why_unusable(certfile: Path, keyfile: Path, error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason in _NO_PAIR:
        return (
            f"--ssl-keyfile {keyfile} does not belong to the first certificate in --ssl-certfile {certfile}; "
            "give two that were made for each other, the server's own certificate before those of its issuers"
        )
    if not _is_readable(certfile):
        return f"--ssl-certfile {certfile} is damaged or unfinished; write it anew"
    if reason is None or reason.startswith("BAD_"):
        return f"--ssl-keyfile {keyfile} is damaged or unfinished; write it anew"
    said = reason.replace("_", " ").lower()
    return f"--ssl-certfile {certfile} with --ssl-keyfile {keyfile} is refused by OpenSSL: {said}; have new ones made"


def _is_readable(certfile: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certfile)
    except OSError:
        return False
    return True
