"""One line for every route of the JSON interface, and the OpenAPI document made of these lines."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, JsonSchemaValue, models_json_schema

from core import __version__
from ui.lab import security
from ui.lab.messages import Problem
from ui.lab.uploads import FIELD

FORM = "multipart/form-data"

_PLACES = {"id": "[0-9a-f]{24}", "name": "[a-z][a-z0-9-]{0,30}"}

Answer = Callable[..., Awaitable[BaseModel | web.StreamResponse]]
Kind = type[BaseModel] | str
"""A model, which travels as JSON, or a media type."""


@dataclass(frozen=True)
class Operation:
    """One route; its summary is the first line of its handler's docstring."""

    method: str
    path: str
    handler: Answer
    answers: Kind
    takes: Kind | None = None
    """None: no body."""
    status: int = 200
    query: tuple[str, ...] = ()

    @property
    def route_path(self) -> str:
        """The path with what may stand in its places: ids, not paths."""
        return re.sub(r"\{(\w+)\}", lambda place: f"{{{place[1]}:{_PLACES[place[1]]}}}", self.path)

    @property
    def name(self) -> str:
        """Unique among the operations."""
        return self.handler.__name__


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these operations."""
    operations = list(operations)
    taken = {each.takes for each in operations if isinstance(each.takes, type)}
    given = {each.answers for each in operations if isinstance(each.answers, type)} | {Problem}
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _sorted(taken)]
    models += [(model, "serialization") for model in _sorted(given)]
    references, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    content = _Content(references)
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _described(each, content)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pyramid Style, the lab",
            "version": __version__,
            "description": "Changes need an `Origin` of this site, and the token of `/api/csrf` with its cookie.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _sorted(models: set[type[BaseModel]]) -> list[type[BaseModel]]:
    return sorted(models, key=lambda model: model.__name__)


@dataclass(frozen=True)
class _Content:
    """How a body is described, given where the models' schemas are."""

    references: Mapping[Any, JsonSchemaValue]

    def of(self, kind: Kind, mode: JsonSchemaMode) -> dict[str, Any]:
        if isinstance(kind, type):
            return {"application/json": {"schema": self.references[kind, mode]}}
        if kind == FORM:
            files = {"type": "array", "items": {"type": "string", "format": "binary"}}
            return {kind: {"schema": {"type": "object", "properties": {FIELD: files}}}}
        return {kind: {}}


def _described(operation: Operation, content: _Content) -> dict[str, Any]:
    places = [_parameter(name, "path") for name in re.findall(r"\{(\w+)\}", operation.path)]
    places += [_parameter(name, "query") for name in operation.query]
    if operation.method != "GET":
        places.append(_parameter(security.CSRF_HEADER, "header"))
    answers = {"description": "As asked.", "content": content.of(operation.answers, "serialization")}
    refusals = {"description": "Refused.", "content": content.of(Problem, "serialization")}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": (operation.handler.__doc__ or "").strip().splitlines()[0],
        "parameters": places,
        "responses": {str(operation.status): answers, "default": refusals},
    }
    if operation.takes is not None:
        described["requestBody"] = {"required": True, "content": content.of(operation.takes, "validation")}
    return described


def _parameter(name: str, place: str) -> dict[str, Any]:
    schema = {"type": "string"} | ({"pattern": f"^{_PLACES[name]}$"} if place == "path" else {})
    return {"name": name, "in": place, "required": place != "query", "schema": schema}
