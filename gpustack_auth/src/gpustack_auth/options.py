"""The options of login through a provider: ``--oidc-*``, ``--saml-*`` and ``--external-auth-*``."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from gpustack.plugin import HttpUrl, Option

_OIDC = "sign-in with OpenID Connect"
_SAML = "sign-in with SAML"
_EXTERNAL = "sign-in through a provider"

#: A claim or attribute, or several joined with ``+``.
_CLAIMS = re.compile(r"[^\s+]+(\+[^\s+]+)*")
#: What python3-saml reads of its ``security`` settings; a misspelt one would be a check that is not made.
_SECURITY = {
    "allowRepeatAttributeName",
    "allowSingleLabelDomains",
    "authnRequestsSigned",
    "digestAlgorithm",
    "failOnAuthnContextMismatch",
    "logoutRequestSigned",
    "logoutResponseSigned",
    "metadataCacheDuration",
    "metadataValidUntil",
    "nameIdEncrypted",
    "rejectDeprecatedAlgorithm",
    "requestedAuthnContext",
    "requestedAuthnContextComparison",
    "signMetadata",
    "signatureAlgorithm",
    "wantAssertionsEncrypted",
    "wantAssertionsSigned",
    "wantAttributeStatement",
    "wantMessagesSigned",
    "wantNameId",
    "wantNameIdEncrypted",
}


def _ends_in(path: str) -> AfterValidator:
    def check(url: str) -> str:
        if url and not url.endswith(path):
            raise ValueError(f"give the server's URL with {path} at its end")
        return url

    return AfterValidator(check)


def _claims(text: str) -> str:
    if text and not _CLAIMS.fullmatch(text):
        raise ValueError("give the name of a claim, or several joined with '+', such as firstName+lastName")
    return text


def _claim(text: str) -> str:
    if "+" in _claims(text):
        raise ValueError("give the name of one claim, such as preferred_username")
    return text


def _security(values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        if key not in _SECURITY:
            near = difflib.get_close_matches(key, sorted(_SECURITY), n=1)
            raise ValueError(
                f"{key!r} is no SAML security setting" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return values


class _ExternalSettings(BaseModel):
    """How what a provider says of a person becomes a user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    external_auth_name: Annotated[
        str,
        AfterValidator(_claim),
        Option(
            value="CLAIM",
            later=_EXTERNAL,
            help="Mapping of external authentication user information to username, e.g., preferred_username.",
        ),
    ] = ""
    external_auth_full_name: Annotated[
        str,
        AfterValidator(_claims),
        Option(
            value="CLAIMS",
            later=_EXTERNAL,
            help="Mapping of external authentication user information to user's full name. Multiple elements can be "
            "combined, e.g., name or firstName+lastName.",
        ),
    ] = ""
    external_auth_avatar_url: Annotated[
        str,
        AfterValidator(_claim),
        Option(
            value="CLAIM",
            later=_EXTERNAL,
            help="Mapping of external authentication user information to user's avatar URL.",
        ),
    ] = ""


class OidcSettings(_ExternalSettings):
    """Login through OpenID Connect."""

    oidc_issuer: Annotated[HttpUrl, Option(value="URL", later=_OIDC, help="OpenID Connect issuer URL.")] = ""
    oidc_client_id: Annotated[str, Option(value="ID", later=_OIDC, help="OpenID Connect client ID.")] = ""
    oidc_client_secret: Annotated[
        str, Option(value="SECRET", secret=True, later=_OIDC, help="OpenID Connect client secret.")
    ] = ""
    oidc_redirect_uri: Annotated[
        HttpUrl,
        _ends_in("/auth/oidc/callback"),
        Option(
            value="URL",
            later=_OIDC,
            help="The redirect URI configured in your OIDC application. This must be set to "
            "<server-url>/auth/oidc/callback.",
        ),
    ] = ""
    oidc_use_userinfo: Annotated[
        bool,
        Option(later=_OIDC, help="Use the UserInfo endpoint to fetch user details after authentication."),
    ] = False


class SamlSettings(_ExternalSettings):
    """Login through SAML 2.0."""

    saml_idp_server_url: Annotated[
        HttpUrl, Option(value="URL", later=_SAML, help="SAML Identity Provider server URL.")
    ] = ""
    saml_idp_entity_id: Annotated[
        str, Option(value="ID", later=_SAML, help="SAML Identity Provider entity ID.")
    ] = ""
    saml_idp_x509_cert: Annotated[
        str, Option(value="PEM", later=_SAML, help="SAML Identity Provider X.509 certificate.")
    ] = ""
    saml_sp_entity_id: Annotated[
        str, Option(value="ID", later=_SAML, help="SAML Service Provider entity ID.")
    ] = ""
    saml_sp_acs_url: Annotated[
        HttpUrl,
        _ends_in("/auth/saml/callback"),
        Option(
            value="URL",
            later=_SAML,
            help="SAML Service Provider Assertion Consumer Service URL. This must be set to "
            "<server-url>/auth/saml/callback.",
        ),
    ] = ""
    saml_sp_x509_cert: Annotated[
        str, Option(value="PEM", later=_SAML, help="SAML Service Provider X.509 certificate.")
    ] = ""
    saml_sp_private_key: Annotated[
        str, Option(value="PEM", secret=True, later=_SAML, help="SAML Service Provider private key.")
    ] = ""
    saml_security: Annotated[
        dict[str, Any],
        AfterValidator(_security),
        Option(value="JSON", later=_SAML, help="SAML security settings in JSON format."),
    ] = {}
    saml_sp_attribute_prefix: Annotated[
        str,
        Option(
            value="PREFIX",
            later=_SAML,
            help="SAML Service Provider attribute prefix, used for fetching attributes specified by "
            "--external-auth-*.",
        ),
    ] = ""
