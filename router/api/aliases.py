"""Aliases: other names of collections, which can be switched from one to another at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Names
from router.api import wire
from router.api.collections import check_name
from router.api.exchange import Context, Timeout, answer, read_body

routes = APIRouter(tags=["Aliases"])

_change = wire.Decoder(wire.ChangeAliases)


@routes.post(
    "/collections/aliases",
    openapi_extra=wire.body(_change),
    responses=wire.answers(bool),
    summary="Change aliases",
)
async def change(request: Request, timeout: Timeout = None) -> Response:
    """Create, delete and rename aliases: all that is asked for, one after the other, or nothing.

    An alias that is created although it is there stands for the new collection from then on.
    Requests that come through another router may still go to the old one for two seconds.
    """
    actions = _change(await read_body(request)).actions
    for number, action in enumerate(actions):
        if action.create_alias:
            check_name(action.create_alias.alias_name, f"actions[{number}].create_alias.alias_name")
        if action.rename_alias:
            new = action.rename_alias.new_alias_name
            check_name(new, f"actions[{number}].rename_alias.new_alias_name")

    def apply(names: Names) -> None:
        for action in actions:
            if action.create_alias:
                names.set_alias(action.create_alias.alias_name, action.create_alias.collection_name)
            elif action.delete_alias:
                names.drop_alias(action.delete_alias.alias_name)
            elif action.rename_alias:
                rename = action.rename_alias
                names.rename_alias(rename.old_alias_name, rename.new_alias_name)

    await Context.of(request).directory.update_aliases(apply)
    return answer(request, True)


@routes.get("/aliases", responses=wire.answers(wire.Aliases), summary="List all aliases")
async def list_all(request: Request) -> Response:
    """Those of all collections."""
    context = Context.of(request)
    aliases = (await context.directory.refresh()).aliases
    seen = {
        alias: name
        for alias, name in aliases.items()
        if context.access.sees(alias) or context.access.sees(name)
    }
    return answer(request, _listed(seen))


@routes.get(
    "/collections/{name}/aliases",
    responses=wire.answers(wire.Aliases),
    summary="List a collection's aliases",
)
async def list_of_collection(request: Request, name: str) -> Response:
    """Those of the collection of that name; none where there is no such collection."""
    aliases = (await Context.of(request).directory.refresh()).aliases
    return answer(request, _listed({one: aliases[one] for one in aliases if aliases[one] == name}))


def _listed(aliases: dict[str, str]) -> dict[str, Any]:
    listed = [{"alias_name": one, "collection_name": aliases[one]} for one in sorted(aliases)]
    return {"aliases": listed}
