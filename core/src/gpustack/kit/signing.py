"""Keys that say who somebody is: Ed25519, as short texts that fit in files and JSON.

The library behind it is loaded when a key is used: a command line that uses none does not wait for it.
"""

from __future__ import annotations

import base64
import re
import secrets

#: 32 bytes in the alphabet of URLs, without the padding: keys, private and public.
KEY_TEXT = re.compile(r"[A-Za-z0-9_-]{43}")
_SEED = 32


def new_key() -> str:
    """Return the text of a new private key; keep it where nobody else reads."""
    return text_of(secrets.token_bytes(_SEED))


def public_key(private: str) -> str:
    """Return the text of the public key that goes with the private one. Raises ValueError for no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return text_of(Ed25519PrivateKey.from_private_bytes(bytes_of(private)).public_key().public_bytes_raw())


def sign(private: str, message: bytes) -> str:
    """Return the text of a signature over ``message``. Raises ValueError for no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return text_of(Ed25519PrivateKey.from_private_bytes(bytes_of(private)).sign(message))


def verified(public: str, message: bytes, signature: str) -> bool:
    """Tell whether ``signature`` was made over ``message`` by the private key that goes with ``public``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes_of(public)).verify(bytes_of(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def text_of(value: bytes) -> str:
    """Return bytes in the alphabet of URLs, without padding."""
    return base64.urlsafe_b64encode(value).decode("ascii").rstrip("=")


def bytes_of(text: str) -> bytes:
    """Return what :func:`text_of` was given. Raises ValueError when it was given nothing."""
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise ValueError("this is no text of bytes") from error
    # More than one text would stand for the same bytes.
    if text_of(value) != text:
        raise ValueError("this is no text of bytes")
    return value
