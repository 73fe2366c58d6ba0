from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.api import Api, running_api


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_a_page_loads_nothing_from_elsewhere(api: Api, page: str) -> None:
    answer = await api.anyone.get(page)

    loaded = re.findall(r'(?:src|href|spec-url)="([^"]+)"', answer.text)
    assert len(loaded) >= 3
    for address in loaded:
        if address != "data:,":
            assert address.startswith("/")
            assert (await api.anyone.get(address)).status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "script-src 'self';" in policy


@pytest.mark.parametrize("name", ["../app.py", "..%2f..%2fapp.py", "nothing.js"])
async def test_no_other_file_is_handed_out(api: Api, name: str) -> None:
    assert (await api.anyone.get(f"/docs/assets/{name}")).status_code == 404


async def test_the_description_is_whole(api: Api) -> None:
    document = (await api.anyone.get("/openapi.json")).json()

    known = set(document["components"]["schemas"])
    wanted = set(re.findall(r"#/components/schemas/([^\"']+)", str(document)))
    assert wanted <= known
    assert document["components"]["schemas"]["ModelCreate"]["additionalProperties"] is False
    assert set(document["components"]["securitySchemes"]) == {"key", "keyHeader", "session"}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all("responses" in operation for operation in operations)
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "ErrorBody" in str(document["paths"]["/v2/models"]["post"]["responses"]["400"])
    assert {"/v1/chat/completions", "/v1/models", "/v2/models/{model_id}", "/auth/login"} <= set(
        document["paths"]
    )


async def test_the_description_is_valid_by_the_schema_of_openapi(api: Api) -> None:
    validator = pytest.importorskip("jsonschema")
    document = (await api.anyone.get("/openapi.json")).json()

    for name, schema in document["components"]["schemas"].items():
        validator.Draft202012Validator.check_schema(schema), name
    assert document["openapi"].startswith("3.1")


async def test_the_documents_can_be_turned_off(migrated_url: str, tmp_path: Path) -> None:
    async with running_api(migrated_url, tmp_path, disable_openapi_docs=True) as api:
        statuses = [(await api.anyone.get(path)).status_code for path in ("/docs", "/redoc", "/openapi.json")]

    assert statuses == [404] * 3
