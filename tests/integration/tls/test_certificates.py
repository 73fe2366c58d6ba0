"""The files of a certificate and its key: what is wrong with them, and until when they last."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import SettingsError
from gpustack.server.tls import Certificates

APair = Callable[..., Any]


def _refusal(certfile: Path, keyfile: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        Certificates(certfile, keyfile)
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.message


def _writes(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def _halves(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:120])


def _becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("option", "name"), [("--ssl-certfile", "server.crt"), ("--ssl-keyfile", "server.key")]
)
@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (Path.unlink, "cannot be read: No such file or directory; give"),
        (_becomes_a_folder, "cannot be read: Is a directory; give"),
        (_writes(b""), "in PEM form; give"),
        (_writes(b"\x30\x82\x00\xff"), "in PEM form; give"),
        (_halves, "is damaged or unfinished; write it anew"),
    ],
    ids=["missing", "folder", "empty", "binary", "half"],
)
def test_what_is_wrong_with_a_file_is_one_line(
    a_pair: APair, tmp_path: Path, option: str, name: str, happens: Callable[[Path], object], why: str
) -> None:
    files = a_pair().write(tmp_path)
    happens(tmp_path / name)

    message = _refusal(*files)

    assert message.startswith(f"{option} {tmp_path / name} ")
    assert why in message


def test_a_key_that_only_others_may_read(
    a_pair: APair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certfile, keyfile = a_pair().write(tmp_path)
    keyfile.chmod(0)
    # Root may read everything, so it has to be another user for a moment.
    if os.geteuid() == 0:
        certificate = certfile.read_bytes()
        reading = _as_nobody(Path.read_bytes)
        monkeypatch.setattr(
            Path, "read_bytes", lambda path: certificate if path == certfile else reading(path)
        )

    assert f"--ssl-keyfile {keyfile} cannot be read: Permission denied" in _refusal(certfile, keyfile)


def _as_nobody(read: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    def reading(path: Path) -> bytes:
        os.seteuid(65534)
        try:
            return read(path)
        finally:
            os.seteuid(0)

    return reading


def test_two_files_that_are_not_there_are_both_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Certificates(tmp_path / "no certificate", tmp_path / "no key")
    first, second = caught.value.message.splitlines()
    assert first.startswith(f"--ssl-certfile {tmp_path / 'no certificate'} cannot be read")
    assert second.startswith(f"--ssl-keyfile {tmp_path / 'no key'} cannot be read")


def test_swapped_files(a_pair: APair, tmp_path: Path) -> None:
    certfile, keyfile = a_pair().write(tmp_path)

    assert _refusal(keyfile, certfile) == (
        f"--ssl-certfile {keyfile} holds the private key, and --ssl-keyfile {certfile} the certificate; swap them"
    )


def test_one_file_may_hold_both(a_pair: APair, tmp_path: Path) -> None:
    pair, both = a_pair(), tmp_path / "both.pem"
    both.write_bytes(pair.key_pem() + pair.pem)

    Certificates(both, both)


@pytest.mark.parametrize("rsa_bits", [0, 2048], ids=["of the same kind", "of another kind"])
def test_a_key_of_another_certificate(a_pair: APair, tmp_path: Path, rsa_bits: int) -> None:
    certfile, keyfile = a_pair().write(tmp_path)
    keyfile.write_bytes(a_pair(rsa_bits=rsa_bits).key_pem())

    message = _refusal(certfile, keyfile)

    assert f"--ssl-keyfile {keyfile} does not belong to" in message
    assert f"--ssl-certfile {certfile};" in message


def test_a_passphrase_is_not_asked_for(
    a_pair: APair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = a_pair()
    certfile, keyfile = pair.write(tmp_path)
    keyfile.write_bytes(pair.key_pem(b"sesame"))

    message = _refusal(certfile, keyfile)

    assert f"--ssl-keyfile {keyfile} is protected by a passphrase" in message
    assert f"openssl pkey -in {keyfile}" in message
    assert capfd.readouterr() == ("", "")


def test_what_openssl_thinks_too_weak(a_pair: APair, tmp_path: Path) -> None:
    assert "is refused by OpenSSL: ee key too small; " in _refusal(*a_pair(rsa_bits=1024).write(tmp_path))


def _shown(certificates: Certificates, client: ssl.SSLContext, name: str | None = "localhost") -> bytes:
    """Return the certificate that a client gets, without any socket."""
    client.check_hostname = name is not None
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificates.context.wrap_bio(there, back, server_side=True)
    mine = client.wrap_bio(back, there, server_hostname=name)
    for side in (mine, server, mine, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = mine.getpeercert(binary_form=True)
    assert shown is not None
    return shown


Trusting = Callable[..., ssl.SSLContext]


@pytest.mark.parametrize("name", ["localhost", None], ids=["named", "nameless"])
@pytest.mark.parametrize("rsa_bits", [0, 2048], ids=["EC", "RSA"])
def test_a_new_pair_is_served_from_then_on(
    a_pair: APair, trusting: Trusting, tmp_path: Path, name: str | None, rsa_bits: int
) -> None:
    old, new = a_pair(), a_pair(rsa_bits=rsa_bits)
    certificates = Certificates(*old.write(tmp_path))
    client = trusting(old, new)
    assert _shown(certificates, client, name) == old.der

    new.write(tmp_path)

    assert _shown(certificates, client, name) == new.der


def test_while_one_file_is_new_the_former_pair_is_served(
    a_pair: APair, trusting: Trusting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = a_pair(), a_pair()
    certfile, keyfile = old.write(tmp_path)
    certificates, client = Certificates(certfile, keyfile), trusting(old, new)

    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

    certfile.write_bytes(new.pem[:100])
    assert [_shown(certificates, client) for _ in range(3)] == [old.der] * 3
    [warning] = warnings()
    assert f"the former one is served on: --ssl-certfile {certfile} is damaged" in warning

    certfile.write_bytes(new.pem)
    assert [_shown(certificates, client) for _ in range(3)] == [old.der] * 3
    assert len(warnings()) == 2
    assert "does not belong to" in warnings()[-1]

    keyfile.unlink()
    assert _shown(certificates, client) == old.der
    keyfile.write_bytes(new.key_pem())
    assert _shown(certificates, client) == new.der
    assert len(warnings()) == 3
    assert all(each.exc_info is None for each in caplog.records)


def test_other_files_may_be_named(a_pair: APair, trusting: Trusting, tmp_path: Path) -> None:
    one, other, third = a_pair(), a_pair(), a_pair()
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    certfile, keyfile = one.write(tmp_path / "one")
    certificates, client = Certificates(certfile, keyfile), trusting(one, other, third)
    certfile_2, keyfile_2 = other.write(tmp_path / "other")

    with pytest.raises(SettingsError, match="does not belong to"):
        certificates.use(certfile_2, keyfile)
    assert _shown(certificates, client) == one.der

    certificates.use(certfile_2, keyfile_2)
    assert _shown(certificates, client) == other.der
    third.write(tmp_path / "other")
    certfile.write_bytes(b"")
    assert _shown(certificates, client) == third.der


def test_reading_anew_says_what_is_wrong_and_once(
    a_pair: APair, trusting: Trusting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = a_pair(), a_pair()
    certfile, _ = old.write(tmp_path)
    certificates, client = Certificates(*old.write(tmp_path)), trusting(old, new)
    certfile.write_bytes(b"")
    with pytest.raises(SettingsError, match="has no certificate in PEM form"):
        certificates.reload()
    assert _shown(certificates, client) == old.der
    assert not caplog.records

    new.write(tmp_path)
    certificates.reload()

    assert _shown(certificates, client) == new.der


def test_looking_for_changes_turns_nobody_away(
    a_pair: APair,
    trusting: Trusting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = a_pair()
    certificates = Certificates(*pair.write(tmp_path))

    def broken(_self: Certificates) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Certificates, "_renew", broken)

    assert _shown(certificates, trusting(pair)) == pair.der
    assert "looking for changes failed" in caplog.text
