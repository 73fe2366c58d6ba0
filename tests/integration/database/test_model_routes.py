"""Routes, their names and targets, and what models that come and go do to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpustack.db import Store
from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, NotFound
from gpustack.schemas import (
    ApiKeyCreate,
    EventType,
    ModelPublic,
    ModelRouteCreate,
    ModelRoutePatch,
    ModelRoutePublic,
    ModelRouteTargetCreate,
    ModelRouteTargetUpdate,
    ModelRouteUpdate,
)
from support.old_database import at_the_first_step
from support.records import a_model_wanted


def wanted(name: str, *targets: Any, **fields: Any) -> ModelRouteCreate:
    """A route; each target is a model's name, or its fields."""
    made = [{"model_name": each} if isinstance(each, str) else each for each in targets]
    return ModelRouteCreate.model_validate({"name": name, "targets": made, **fields})


async def models(store: Store, *names: str, **fields: Any) -> list[ModelPublic]:
    return [await store.models.create(a_model_wanted(name, **fields), 1) for name in names]


async def names(store: Store) -> list[str]:
    return [route.name for route in (await store.model_routes.list(sort_by="name")).items]


def shares(route: ModelRoutePublic) -> dict[str, tuple[int | None, int, bool]]:
    return {each.model_name: (each.model_id, each.weight, each.is_fallback) for each in route.targets}


async def test_a_model_comes_and_goes_with_a_route_of_its_name(store: Store) -> None:
    (model, _) = await models(store, "tiny", "other")
    await models(store, "hidden", enable_model_route=False)
    (route,) = (await store.model_routes.list(search="tiny")).items

    assert await names(store) == ["other", "tiny"]
    assert shares(route) == {"tiny": (model.id, 100, False)}
    assert (route.created_model_id, route.state_message) == (model.id, "")
    await store.models.delete(model.id)
    assert await names(store) == ["other"]
    (again,) = await models(store, "tiny")
    assert (await store.model_routes.list(search="tiny")).items[0].created_model_id == again.id


async def test_a_route_comes_back_as_it_was_stored(store: Store) -> None:
    old, new = await models(store, "old", "new")
    targets = [{"model_name": "old", "weight": 90}, {"model_id": new.id, "weight": 10}]
    before = await store.events.last_number()
    route = await store.model_routes.create(wanted("smart", *targets, aliases=["gpt"], description="d"))

    assert shares(route) == {"old": (old.id, 90, False), "new": (new.id, 10, False)}
    assert await store.model_routes.get(route.id) == route
    assert route in (await store.model_routes.list(page=-1)).items
    (event,) = await store.events.after(before)
    assert (event.topic, event.type, event.id) == ("model-routes", EventType.CREATED, route.id)
    assert ModelRoutePublic.model_validate(event.data) == route
    listed = (await store.route_targets.list(route_id=route.id)).items
    assert listed == route.targets


async def test_targets_of_models_that_stay_keep_their_ids_and_each_change_is_one_event(store: Store) -> None:
    await models(store, "a", "b", "c")
    route = await store.model_routes.create(wanted("smart", "a", "b", aliases=["x", "y"]))
    before = await store.events.last_number()

    whole = ModelRouteUpdate.model_validate(
        {
            "name": "clever",
            "aliases": ["y", "z"],
            "targets": [{"model_name": "b", "weight": 1}, {"model_name": "c"}],
        }
    )
    new = await store.model_routes.update(route.id, whole)
    assert (new.name, new.aliases, [*shares(new)]) == ("clever", ["y", "z"], ["b", "c"])
    assert new.targets[0].id == route.targets[1].id
    assert await store.model_routes.get(route.id) == new
    (event,) = await store.events.after(before)
    assert set(event.changed_fields) == {"name", "aliases", "targets"}

    patched = await store.model_routes.update(route.id, ModelRoutePatch(description="mine"))
    assert patched.model_copy(update={"description": "", "updated_at": new.updated_at}) == new
    assert (await store.model_routes.create(wanted("smart", "a", aliases=["x"]))).name == "smart"
    await store.model_routes.delete(route.id)
    await store.model_routes.create(wanted("clever", "a", aliases=["y", "z"]))


async def test_the_errors_that_lead_to_the_fallback_are_kept(store: Store) -> None:
    await models(store, "a")
    plain = await store.model_routes.create(wanted("plain", "a"))
    assert (await store.model_routes.get(plain.id)).fallback_status_codes == []
    asked = wanted("smart", "a").model_copy(update={"fallback_status_codes": ["5xx", "429"]})
    route = await store.model_routes.create(asked)
    assert (await store.model_routes.get(route.id)).fallback_status_codes == ["5xx", "429"]
    await store.model_routes.update(route.id, ModelRoutePatch(description="other"))
    assert (await store.model_routes.get(route.id)).fallback_status_codes == ["5xx", "429"]
    await store.model_routes.update(route.id, ModelRoutePatch(fallback_status_codes=["4xx"]))
    assert (await store.model_routes.get(route.id)).fallback_status_codes == ["4xx"]


async def test_targets_are_added_weighed_made_the_fallback_and_removed(store: Store) -> None:
    await models(store, "a", "b", "c")
    route = await store.model_routes.create(wanted("smart", "a", {"model_name": "b", "is_fallback": True}))
    more = [ModelRouteTargetCreate(model_name="c", weight=5)]
    route = await store.model_routes.add_targets(route.id, more)
    a, b, c = route.targets

    changed = await store.model_routes.update_target(c.id, ModelRouteTargetUpdate(is_fallback=True))
    assert (changed.is_fallback, changed.weight) == (True, 5)
    assert not (await store.route_targets.get(b.id)).is_fallback
    await store.model_routes.update_target(b.id, ModelRouteTargetUpdate(weight=7))
    left = await store.model_routes.remove_target(a.id)
    assert [*shares(left)] == ["b", "c"]
    with pytest.raises(InvalidInput, match="none would take requests"):
        await store.model_routes.remove_target(b.id)
    with pytest.raises(InvalidInput, match="none would take requests"):
        await store.model_routes.update_target(b.id, ModelRouteTargetUpdate(weight=0))
    with pytest.raises(Conflict, match=r"model 'b' is a target of route 'smart' already"):
        await store.model_routes.add_targets(route.id, [ModelRouteTargetCreate(model_name="b")])
    with pytest.raises(NotFound, match="there is no model route target 99"):
        await store.model_routes.remove_target(99)
    assert shares(await store.model_routes.get(route.id)) == shares(left)


_ONE_THAT = "choose another name or remove that one with `gpustack routes rm"
_WEIGHTLESS = "targets: none would take requests; one that is not the fallback needs a weight above 0"
_SPARE = {"is_fallback": True}
_WRONG: list[tuple[ModelRouteCreate, type[GPUStackError], str]] = [
    (wanted("r", "a", "none"), NotFound, "targets: there is no model 'none'"),
    (wanted("r", {"model_id": 77}), NotFound, "targets: there is no model 77"),
    (wanted("r", "a", {"model_id": 1}), InvalidInput, "targets: model 'a' is there twice; give it one weight"),
    (wanted("taken", "a"), Conflict, f"a model route named 'taken' exists already; {_ONE_THAT} taken`"),
    (wanted("also", "a"), Conflict, "'also' is an alias of model route 'taken'; choose another name"),
    (wanted("r", "a", aliases=["taken"]), Conflict, f"a model route named 'taken' exists already; {_ONE_THAT} taken`"),
    (wanted("a", "b"), Conflict, f"a model route named 'a' exists already; {_ONE_THAT} a`"),
    (wanted("hidden", "a"), Conflict,
     ("'hidden' is the name of a model; choose another one, or make that model a target")),
    (wanted("r", "a", aliases=["r"]), InvalidInput, "aliases: 'r' is the route's name already"),
    (wanted("r", {"model_name": "a", "weight": 0}), InvalidInput, _WEIGHTLESS),
    (wanted("r", {"model_name": "a", **_SPARE}), InvalidInput, _WEIGHTLESS),
    (wanted("r", "a", {"model_name": "b", **_SPARE}, {"model_name": "hidden", **_SPARE}), InvalidInput,
     "targets: at most one is the fallback"),
]  # fmt: skip


async def test_what_cannot_be_is_said_in_one_line(prepared: Store) -> None:
    before = await prepared.events.last_number()
    for route, kind, line in _WRONG:
        with pytest.raises(kind) as caught:
            await prepared.model_routes.create(route)
        assert str(caught.value) == line
    assert await prepared.events.last_number() == before


@pytest.fixture
async def prepared(store: Store) -> Store:
    """Models a and b, one without a route, and a route with an alias."""
    await models(store, "a", "b")
    await models(store, "hidden", enable_model_route=False)
    await store.model_routes.create(wanted("taken", "a", aliases=["also"]))
    return store


async def test_a_model_takes_no_name_that_leads_elsewhere(prepared: Store) -> None:
    for own in (True, False):
        with pytest.raises(Conflict, match="a model route named 'taken' exists already"):
            await models(prepared, "taken", enable_model_route=own)
        with pytest.raises(Conflict, match="'also' is an alias of model route 'taken'"):
            await models(prepared, "also", enable_model_route=own)
    assert {model.name for model in (await prepared.models.list()).items} == {"a", "b", "hidden"}
    (route,) = [await prepared.model_routes.create(wanted("hidden", "hidden"))]
    assert route.created_model_id is not None  # that is the model's own


async def test_a_route_says_that_a_model_is_gone_and_takes_the_next_of_its_name(store: Store) -> None:
    old, _ = await models(store, "chat", "new")
    (own,) = (await store.model_routes.list(search="chat")).items
    await store.model_routes.add_targets(own.id, [ModelRouteTargetCreate(model_name="new", weight=10)])
    await store.models.delete(old.id)

    gone = await store.model_routes.get(own.id)
    assert shares(gone) == {"chat": (None, 100, False), "new": (2, 10, False)}
    assert gone.state_message == gone.targets[0].state_message == "model chat was removed"
    same = [{"model_name": "chat", "weight": 50}, {"model_name": "new"}]
    kept = await store.model_routes.update(gone.id, ModelRoutePatch.model_validate({"targets": same}))
    assert shares(kept)["chat"] == (None, 50, False)

    (again,) = await models(store, "chat")
    back = await store.model_routes.get(own.id)
    assert (back.created_model_id, back.state_message) == (again.id, "")
    assert await names(store) == ["chat", "new"]


async def test_two_who_want_one_name_at_the_same_moment_both_get_an_answer(store: Store) -> None:
    await models(store, "a", "b")
    both = [wanted("x", "a", "b", aliases=["y", "z"]), wanted("z", "b", "a", aliases=["x", "y"])]
    answers = await asyncio.gather(*map(store.model_routes.create, both), return_exceptions=True)

    assert {type(answer) for answer in answers} == {ModelRoutePublic, Conflict}


async def test_a_model_is_removed_while_routes_to_it_are_made(store: Store) -> None:
    (model,) = await models(store, "a")
    made = [store.model_routes.create(wanted(f"r{number}", "a")) for number in range(4)]
    answers = await asyncio.gather(*made, store.models.delete(model.id), return_exceptions=True)

    assert {type(answer) for answer in answers} <= {ModelRoutePublic, ModelPublic, NotFound}
    assert all(
        each.model_id is None for each in (await store.route_targets.list(page=-1)).items
    )  # nobody leads to what is not there


async def test_models_of_an_older_version_get_their_routes(database_url: str) -> None:
    await at_the_first_step(database_url)
    async with await Store.open(database_url) as store:
        await store.migrate()
        (route,) = (await store.model_routes.list()).items
        model = await store.models.by_name("old")

        assert (route.name, route.created_at, shares(route)) == (
            "old", model.created_at, {"old": (model.id, 100, False)},
        )  # fmt: skip
        with pytest.raises(Conflict):
            await store.model_routes.create(wanted("old", "old"))


async def test_keys_are_read_by_key_and_by_user(store: Store) -> None:
    eve = await store.users.create("eve", "hash")
    for number in range(3):
        await store.api_keys.create(1, ApiKeyCreate(name=f"k{number}"), f"a{number}", f"d{number}", None)
    await store.api_keys.create(eve.id, ApiKeyCreate(name="hers"), "a9", "d9", None)

    async def digests(**how: Any) -> list[str]:
        return [row.digest for row in await store.api_keys.principals(**how)]

    assert await digests() == ["d0", "d1", "d2", "d9"]
    assert await digests(keys={2, 4, 99}) == ["d1", "d9"]
    assert await digests(user_id=eve.id) == ["d9"]
    assert await digests(keys={1, 4}, user_id=eve.id) == ["d9"]
    assert await digests(keys=()) == []
