"""People who sign in."""

from __future__ import annotations

from pydantic import Field

from gpustack.schemas.common import Input, Record, Title


class UserPublic(Record):
    """A user, without anything secret."""

    username: str
    full_name: str = ""
    is_admin: bool = False
    is_active: bool = True
    require_password_change: bool = False
    source: str = "Local"


class UserSelfUpdate(Input):
    """What users may change about themselves."""

    full_name: Title = Field(max_length=256)
