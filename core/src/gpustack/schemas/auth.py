"""Signing in, and what the server says about itself."""

from __future__ import annotations

from pydantic import Field, SecretStr

from gpustack.schemas.common import Input, Output, Title


class Login(Input):
    """The form of ``POST /auth/login``."""

    username: Title = Field(min_length=1, max_length=128)
    password: SecretStr = Field(min_length=1, max_length=1024)


class LoginReply(Output):
    """Who signed in; the session itself is in the cookie."""

    username: str
    is_admin: bool
    require_password_change: bool


class PasswordChange(Input):
    """The body of ``POST /auth/update-password``."""

    current_password: SecretStr = Field(min_length=1, max_length=1024)
    new_password: SecretStr = Field(min_length=8, max_length=1024)


class PasswordReset(Input):
    """The body of ``POST /auth/reset-admin-password``. Without a password, one is made up."""

    new_password: SecretStr | None = Field(default=None, min_length=8, max_length=1024)


class PasswordResetReply(Output):
    """The administrator's new password, shown this once."""

    username: str
    password: str


class VersionInfo(Output):
    """The answer of ``GET /version``."""

    version: str
    git_commit: str
