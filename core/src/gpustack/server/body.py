"""Request and response bodies, each looked at once: pydantic reads and writes the JSON, litestar moves bytes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, TypeVar, cast

from litestar import Response
from litestar.dto import AbstractDTO, DTOConfig, DTOFieldDefinition
from litestar.typing import FieldDefinition
from pydantic import BaseModel, ValidationError

from gpustack.schemas.common import Page
from gpustack.server.errors import invalid

M = TypeVar("M", bound=BaseModel)


class Body(AbstractDTO[M], Generic[M]):
    """Reads a JSON body as the pydantic model that the handler's ``data`` names; all problems in one line."""

    config = DTOConfig()

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: type[Any] | None = None
    ) -> None:
        """Prepare nothing: there is no other model than pydantic's."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Any:
        """Return a reference to the model's own schema."""
        del handler_id
        return schema_creator.for_field_definition(field_definition)

    def decode_bytes(self, value: bytes) -> Any:
        """Return the model. Raises InvalidInput."""
        try:
            return cast("type[BaseModel]", self.model_type).model_validate_json(value)
        except ValidationError as error:
            raise invalid(error) from None

    def decode_builtins(self, value: dict[str, Any]) -> Any:
        """Return the model of a form. Raises InvalidInput."""
        try:
            return cast("type[BaseModel]", self.model_type).model_validate(value)
        except ValidationError as error:
            raise invalid(error) from None

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        """Yield nothing: the model's own schema is used."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Tell that there are none to look into."""
        del field_definition
        return False


def one(value: M, *, status: int = 200) -> Response[M]:
    """Return ``value`` as the answer."""
    return cast(
        "Response[M]",
        Response(
            value.__pydantic_serializer__.to_json(value), status_code=status, media_type="application/json"
        ),
    )


def page(value: Page[M]) -> Response[Page[M]]:
    """Return a page of a list as the answer."""
    return cast("Response[Page[M]]", one(value))


def page_text(document: bytes) -> Response[Page[Any]]:
    """Return a page of a list that is JSON already as the answer."""
    return cast("Response[Page[Any]]", Response(document, media_type="application/json"))


def nothing() -> Response[None]:
    """Return the answer that has no body."""
    return Response(None, status_code=204)
