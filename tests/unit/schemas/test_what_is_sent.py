from __future__ import annotations

import pytest
from pydantic import BaseModel

from gpustack.schemas import ApiKeyCreate, Login, ModelCreate, PasswordChange


def test_spaces_in_what_is_sent_stay() -> None:
    password = PasswordChange(current_password=" old secret ", new_password=" new secret ")  # type: ignore[arg-type]
    model = ModelCreate(
        name="tiny", local_path="/models/tiny ", backend_parameters=["--stop", " "], env={"A": " 1\n"}
    )

    assert password.current_password.get_secret_value() == " old secret "
    assert password.new_password.get_secret_value() == " new secret "
    assert model.local_path == "/models/tiny "
    assert model.backend_parameters == ["--stop", " "]
    assert model.env == {"A": " 1\n"}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (ModelCreate(name=" tiny ", local_path="/m"), "name"),
        (ApiKeyCreate(name="tiny\n"), "name"),
        (Login(username=" tiny", password="x"), "username"),  # type: ignore[arg-type]
    ],
)
def test_spaces_around_names_go(sent: BaseModel, field: str) -> None:
    assert getattr(sent, field) == "tiny"


def test_a_name_of_spaces_is_no_name() -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        ApiKeyCreate(name="  ")
