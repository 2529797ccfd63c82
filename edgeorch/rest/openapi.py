"""The OpenAPI 3.1 document, made from the route table and the msgspec types."""

import http
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from edgeorch import __version__
from edgeorch.errors import EdgeorchError, problem_types
from edgeorch.rest.problems import PROBLEM_TYPE, Problem
from edgeorch.rest.routes import JSON, NDJSON, SSE, NoQuery, Route, Shown

REF = "#/components/schemas/{name}"
_VARIABLE = re.compile(r"\{(\w+)\}")
_VARIABLES = {
    "tasks": "Task id: ULID-NODEID in lower case.",
    "nodes": "Node id or name; ``self`` is the asked node.",
}
_ANSWER_HEADERS = {
    "Edgeorch-Output": "``tail-only`` where only the last bytes of each stream are left.",
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document for these routes; those outside ``/api`` are in it too, pages are not."""
    table = [route for route in routes if route.shown]
    kinds = list(dict.fromkeys(_kinds(table)))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, schema_of, components)
    queries = {route.query.__name__ for route in table}
    shown = {name: schema for name, schema in components.items() if name not in queries}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeorch",
            "version": __version__,
            "summary": "Run containers and commands on the best-placed machine of a small fleet.",
            "description": (
                "Any node of the fleet answers for all of it. JSON is snake_case, times are RFC 3339 in UTC, "
                "durations end in _s, memory is in bytes. Errors are problem details (RFC 9457); "
                "/docs/problems lists them. Roles: read < submit < admin."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in table)],
        "paths": paths,
        "components": {
            "schemas": {**shown, "Problem": _problem_schema()},
            "responses": {
                str(status): {
                    "description": text,
                    "content": {PROBLEM_TYPE: {"schema": {"$ref": REF.format(name="Problem")}}},
                }
                for status, text in _problem_texts().items()
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Made with ``edgeorch token create``. On loopback api.anonymous_role may "
                    "stand for it.",
                }
            },
        },
    }


def _kinds(routes: Iterable[Route]) -> Iterator[Any]:
    for route in routes:
        if route.query is not NoQuery:
            yield route.query
        if route.body is not None:
            yield route.body
        for shown in route.shown.values():
            yield from _structs(shown)


def _structs(shown: Shown) -> tuple[Any, ...]:
    return (*_alternatives(shown), *([] if shown.lines is None else [shown.lines]))


def _alternatives(shown: Shown) -> tuple[Any, ...]:
    if shown.body is None:
        return ()
    return shown.body if isinstance(shown.body, tuple) else (shown.body,)


def _operation(route: Route, schema_of: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    needs = "" if route.role == "none" else f"Role: {route.role}."
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": " ".join(part for part in (route.description, needs) if part),
        "tags": [route.tag],
        "responses": {str(status): _response(shown, schema_of) for status, shown in route.shown.items()},
    }
    if route.role == "none":
        operation["security"] = []
    if parameters := [*_path(route), *_query(route, components), *_headers(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema_of[route.body]}}}
    for status in _problems(route):
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
    return operation


def _problems(route: Route) -> list[int]:
    """Every problem status of a route: its own, and those that its kind brings with it."""
    found = {500, *route.problems}
    if route.role != "none":
        found |= {400, 401, 403, 415, 429}
    if route.body is not None:
        found |= {400, 408, 413, 415}
    return sorted((found | {400}) - set(route.shown))


def _response(shown: Shown, schema_of: dict[Any, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": shown.description}
    schemas = [schema_of[kind] for kind in _alternatives(shown)]
    if schemas:
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        response["content"] = {shown.media: {"schema": _event(schema) if shown.media == SSE else schema}}
    elif shown.media != JSON:
        response["content"] = {shown.media: {"schema": {"type": "string"}}}
    if shown.lines is not None:
        response["content"][NDJSON] = {"schema": schema_of[shown.lines]}
    if shown.headers:
        response["headers"] = {
            name: {"description": _ANSWER_HEADERS[name], "schema": {"type": "string"}}
            for name in shown.headers
        }
    return response


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """One Server-Sent Event whose data is JSON, as OpenAPI 3.2 describes ``text/event-stream``."""
    text = {"type": "string"}
    payload = {**text, "contentMediaType": JSON, "contentSchema": data}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"id": text, "event": text, "data": payload},
    }


def _path(route: Route) -> list[dict[str, Any]]:
    kind = route.path.split("/")[3:4]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _VARIABLES.get(kind[0] if kind else "", ""),
            "schema": {"type": "string", "minLength": 1},
        }
        for name in _VARIABLE.findall(route.path)
    ]


def _query(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    properties = components.get(route.query.__name__, {}).get("properties", {})
    shown = []
    for name, schema in properties.items():
        rest = {key: value for key, value in schema.items() if key != "description"}
        parameter = {"name": name, "in": "query", "schema": rest}
        if text := schema.get("description"):
            parameter["description"] = text
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        shown.append(parameter)
    return shown


def _headers(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": header.name,
            "in": "header",
            "description": header.description,
            "schema": dict(header.schema),
        }
        for header in route.headers
    ]


def _problem_schema() -> dict[str, Any]:
    properties = {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "hint": {"type": "string", "description": "What to do about it; may be empty."},
    }
    return {
        "type": "object",
        "title": "Problem",
        "description": Problem.__doc__,
        "required": list(properties),
        "properties": properties,
    }


def _problem_texts() -> dict[int, str]:
    """HTTP status to the titles of the problem types that have it."""
    found: dict[int, list[str]] = {408: [http.HTTPStatus.REQUEST_TIMEOUT.phrase], 500: [EdgeorchError.title]}
    for kind in sorted(problem_types().values(), key=lambda kind: kind.slug):
        titles = found.setdefault(kind.status, [])
        # Other types of status 500 never reach a client: they end a start.
        if kind.title not in titles and kind.status != EdgeorchError.status:
            titles.append(kind.title)
    return {status: "; ".join(titles) for status, titles in sorted(found.items())}
