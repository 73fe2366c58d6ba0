"""Single sign-on for GPUStack, each provider a plugin like anybody else's.

Login through OpenID Connect (``oidc``) and SAML 2.0 (``saml``) will live here, each in a module of its own, built on
nothing of the core but ``gpustack.plugin``. Neither is written yet: the package brings their options, which are read and
checked, and signs nobody in.
"""

from __future__ import annotations

from pydantic import BaseModel

from gpustack.plugin import hookimpl
from gpustack_auth.options import OidcSettings, SamlSettings


@hookimpl
def register_settings() -> list[type[BaseModel]]:
    """Bring the options of both kinds of login."""
    return [OidcSettings, SamlSettings]
