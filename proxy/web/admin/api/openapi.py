"""The OpenAPI 3.1 document of the Admin API, generated from its routes and their models."""

import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from proxy import VERSION
from proxy.web.admin.api.routes import PREFIX, AnyRoute, Caller, Model, NoParams, Route

_REF: Final = "#/components/schemas/{model}"
_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "The admin token, or a token."},
    "password": {"type": "http", "scheme": "basic"},
}

Schema = dict[str, Any]


class ErrorEntry(Model):
    """One error, with a code of the OCI distribution specification."""

    code: str
    message: str
    detail: Any = None


class Errors(Model):
    """The body of every failed request."""

    errors: list[ErrorEntry]


class OpenApi(Model):
    """An OpenAPI document."""

    model_config = ConfigDict(frozen=True, extra="allow")

    openapi: str


class Description:
    """Describes the routes, and itself: ``route`` is one of them."""

    def __init__(self, routes: Iterable[AnyRoute]) -> None:
        self.route: Final = Route(
            "GET", "openapi.json", NoParams, OpenApi, self._get, "Describe the API.", is_public=True
        )
        self.routes: Final = (self.route, *routes)
        self._document: OpenApi | None = None

    async def _get(self, _: NoParams, __: Caller) -> Model:
        if self._document is None:
            self._document = OpenApi.model_validate(described(self.routes))
        return self._document


def described(routes: Iterable[AnyRoute]) -> Schema:
    """Return the OpenAPI document of routes."""
    routes = tuple(routes)
    refs, schemas = _schemas(routes)
    paths: dict[str, Schema] = {}
    for route in routes:
        operation = _operation(route, refs, schemas)
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = operation
    bodies = {refs[route.params, "validation"] for route in routes if _has_body(route)}
    inline = {refs[route.params, "validation"] for route in routes} - bodies
    components = {
        name: schema for name, schema in schemas.items() if _REF.format(model=name) not in inline
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Millpond Admin API", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _SCHEMES},
    }


def _schemas(routes: Iterable[AnyRoute]) -> tuple[dict[Any, str], dict[str, Schema]]:
    """Return the reference of each model by model and mode, and the schemas by name."""
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Errors, "serialization"): None}
    for route in routes:
        models[route.params, "validation"] = None
        for answer in (route.answer, route.events, route.dry):
            if answer is not None:
                models[answer, "serialization"] = None
    by_model, definitions = models_json_schema(list(models), ref_template=_REF)
    return {key: schema["$ref"] for key, schema in by_model.items()}, definitions["$defs"]


def _operation(route: AnyRoute, refs: dict[Any, str], schemas: dict[str, Schema]) -> Schema:
    ref = refs[route.params, "validation"]
    operation: Schema = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "security": [{}] if route.is_public else [{"token": []}, {"password": []}],
    }
    if _has_body(route):
        content = {"application/json": {"schema": {"$ref": ref}}}
        operation["requestBody"] = {"required": True, "content": content}
    elif parameters := _parameters(route, schemas[ref.rpartition("/")[2]]):
        operation["parameters"] = parameters
    failure = {"application/json": {"schema": {"$ref": refs[Errors, "serialization"]}}}
    operation["responses"] = {
        **_dry_run(route, refs),
        str(route.status): {"description": route.summary, "content": _content(route, refs)},
        "default": {"description": "It failed.", "content": failure},
    }
    return operation


def _content(route: AnyRoute, refs: dict[Any, str]) -> Schema:
    content: Schema = {}
    if route.answer is not None:
        ref = refs[route.answer, "serialization"]
        content["application/json"] = {"schema": {"$ref": ref}}
    if route.events is not None:
        data = {"$ref": refs[route.events, "serialization"]}
        events = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
        content["text/event-stream"] = {"schema": events}
    return content


def _dry_run(route: AnyRoute, refs: dict[Any, str]) -> Schema:
    if route.dry is None:
        return {}
    schema = {"$ref": refs[route.dry, "serialization"]}
    content = {"application/json": {"schema": schema}}
    return {"200": {"description": "The effect without dry_run.", "content": content}}


def _parameters(route: AnyRoute, schema: Schema) -> list[Schema]:
    in_path, required = _IN_PATH.findall(route.path), schema.get("required", ())
    return [
        {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in required or name in in_path,
            "schema": {key: value for key, value in about.items() if key != "description"},
            **({"description": about["description"]} if "description" in about else {}),
        }
        for name, about in schema.get("properties", {}).items()
    ]


def _has_body(route: AnyRoute) -> bool:
    return route.method in ("POST", "PUT") and route.params is not NoParams


def _operation_id(route: AnyRoute) -> str:
    words = re.findall(r"\w+", route.path.removesuffix(".json"))
    return "_".join([route.method.lower(), *words])
