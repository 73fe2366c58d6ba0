"""Whom we believe to be who they say they are, on the internet."""

from __future__ import annotations

import os
import ssl


def authorities() -> ssl.SSLContext:
    """Return the authorities that the usual variables name, or httpx's own: those that the system trusts."""
    import httpx

    named = (
        os.environ.get("SSL_CERT_FILE")
        or os.environ.get("REQUESTS_CA_BUNDLE")
        or os.environ.get("CURL_CA_BUNDLE")
    )
    return ssl.create_default_context(cafile=named) if named else httpx.create_ssl_context()
