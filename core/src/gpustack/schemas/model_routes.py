"""Model routes: the names that requests ask for, and which models answer under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, computed_field, field_validator, model_validator

from gpustack.schemas.common import Input, Name, Record, Title

#: Aliases, and targets, of one route.
MOST = 100
#: The largest weight of a target.
HEAVIEST = 10_000

#: Errors of engines: one by its number, or all that begin with 4 or with 5.
StatusCodes = Annotated[str, Field(pattern=r"^[45](xx|[0-9]{2})$")]


class ModelRouteTargetCreate(Input):
    """One model that answers for a route, named by its id or by its name."""

    model_id: int | None = Field(default=None, ge=1, le=2**63 - 1)
    model_name: Title | None = Field(default=None, min_length=1, max_length=128)
    #: Its share of the requests, relative to the other targets' weights; with 0 it gets none.
    weight: int = Field(default=100, ge=0, le=HEAVIEST)
    #: Asked when none of the other targets can answer. At most one is; its weight has no say.
    is_fallback: bool = False

    @model_validator(mode="after")
    def _names_one_model(self) -> ModelRouteTargetCreate:
        if (self.model_id is None) == (self.model_name is None):
            raise ValueError("a target has a model_id or a model_name, and not both")
        return self


class ModelRouteTargetUpdate(Input):
    """What is to change of a target; what is absent stays."""

    weight: int | None = Field(default=None, ge=0, le=HEAVIEST)
    is_fallback: bool | None = None


class ModelRouteAddTargets(Input):
    """Models that are to answer for a route as well."""

    targets: list[ModelRouteTargetCreate] = Field(min_length=1, max_length=MOST)


def _once(names: Sequence[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is in the list twice")
    return [*names]


class ModelRouteUpdate(Input):
    """The whole new description of a route, but for its targets when ``targets`` is absent or null."""

    #: The name that requests ask for; unique among the names and aliases of all routes.
    name: Name
    description: str = Field(default="", max_length=4096)
    #: Other names of the same, as unique.
    aliases: list[Name] = Field(default_factory=list, max_length=MOST)
    targets: list[ModelRouteTargetCreate] | None = Field(default=None, max_length=MOST)
    #: Answers of engines, such as ``5xx`` or ``429``, in whose place the fallback is asked, too. Without any it is asked
    #: where nobody can answer.
    fallback_status_codes: list[StatusCodes] = Field(default_factory=list, max_length=MOST)

    _unique = field_validator("aliases", "fallback_status_codes")(_once)


class ModelRouteCreate(ModelRouteUpdate):
    """A route to make."""

    targets: list[ModelRouteTargetCreate] = Field(min_length=1, max_length=MOST)


class ModelRoutePatch(Input):
    """What is to change of a route: what is absent or null stays, lists are replaced."""

    name: Name | None = None
    description: str | None = Field(default=None, max_length=4096)
    aliases: list[Name] | None = Field(default=None, max_length=MOST)
    targets: list[ModelRouteTargetCreate] | None = Field(default=None, max_length=MOST)
    fallback_status_codes: list[StatusCodes] | None = Field(default=None, max_length=MOST)

    @field_validator("aliases", "fallback_status_codes")
    @classmethod
    def _unique(cls, given: list[str] | None) -> list[str] | None:
        return None if given is None else _once(given)


class ModelRouteTargetPublic(Record):
    """One model that answers for a route."""

    route_id: int
    #: None: the model was removed. One that is deployed by the same name takes its place.
    model_id: int | None = None
    model_name: str
    weight: int = 100
    is_fallback: bool = False

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def state_message(self) -> str:
        """Say why it takes no requests whatever its weight is; empty when nothing is wrong with it."""
        return f"model {self.model_name} was removed" if self.model_id is None else ""


class ModelRoutePublic(Record):
    """A name that requests ask for, with the models that answer."""

    name: str
    description: str = ""
    aliases: list[str] = []
    #: In the order in which they were added.
    targets: list[ModelRouteTargetPublic] = []
    #: Answers of engines, such as ``5xx`` or ``429``, in whose place the fallback is asked, too.
    fallback_status_codes: list[str] = []

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def created_model_id(self) -> int | None:
        """Tell the model whose own route this is, by its name; it goes with the model if that is its only target."""
        own = (each.model_id for each in self.targets if each.model_name == self.name)
        return next(own, None)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way
    @property
    def state_message(self) -> str:
        """Say what is wrong with its targets; empty when nothing is."""
        return "; ".join(each.state_message for each in self.targets if each.model_id is None)
