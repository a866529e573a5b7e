"""The OpenAPI document, out of what `@endpoint` declares.

Bodies and answers are described by the very models that read and write them, each as one component.
Requests and answers differ in what a default means. A field of a request with a default may be
left out, and the document says the default in words: generators take the keyword `default` for a
promise that the field is there. A field of an answer is always there, unless its default is None:
then it is absent when there is nothing to say, and never null. Null is for fields without default.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from inspect import signature
from threading import Lock
from typing import Any, Literal, cast, get_type_hints

import orjson
from django.core.exceptions import ImproperlyConfigured
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent, build_basic_type
from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from gateway_project.core.api import deprecation
from gateway_project.core.api.endpoint import Answer, Asked, Endpoint, Problem
from gateway_project.core.errors import CONTENT_TYPE, GatewayError

Mode = Literal["validation", "serialization"]
Schema = dict[str, Any]
REF = "#/components/schemas/{model}"


def _header(
    description: str, kind: str = "string", *, is_always: bool = False, **more: Any
) -> Schema:
    required = {"required": True} if is_always else {}
    return {"description": description, **required, "schema": {"type": kind, **more}}


HEADERS: dict[str, Schema] = {
    "X-Request-ID": _header("The caller's X-Request-ID when valid, else ours.", is_always=True),
    "Server-Timing": _header(
        "Milliseconds spent in gateway, limiter and upstream.", is_always=True
    ),
    "RateLimit": _header("What is left of each limit (draft-ietf-httpapi-ratelimit-headers-10)."),
    "RateLimit-Policy": _header("The limits in force."),
    "X-RateLimit-Limit": _header("Of the limit nearest to its end.", "integer"),
    "X-RateLimit-Remaining": _header("Of the limit nearest to its end.", "integer"),
    "X-RateLimit-Reset": _header("Seconds until all of it is back.", "integer"),
    "Retry-After": _header("Seconds to wait.", "integer", is_always=True, minimum=0),
    "WWW-Authenticate": _header("How to say who one is (RFC 9110).", is_always=True),
    "Location": _header("Where what was made can be read.", is_always=True, format="uri-reference"),
    "Age": _header("Seconds since Robin was asked.", "integer", is_always=True, minimum=0),
    "ETag": _header("The version, for `If-Match`.", is_always=True),
    "Content-Disposition": _header("The name of the file (RFC 6266).", is_always=True),
    "Idempotency-Replayed": _header("`true`: the answer that was given before, again."),
    "Preference-Applied": _header("`respond-async` (RFC 7240).", is_always=True),
    "Set-Cookie": _header("The refresh token, HttpOnly; empty: it ends.", is_always=True),
    "Deprecation": _header("Since when this is deprecated (RFC 9745): `@` and Unix seconds."),
    "Sunset": _header("When it may be gone (RFC 8594)."),
    "Link": _header("To the guide on versions (RFC 8288)."),
    "X-Gateway-Notice": _header("That it is kept here, and not applied to Robin."),
}
MAY_WAIT = _header("Seconds to wait, when that helps.", "integer", minimum=0)
OF_ALL = ("X-Request-ID", "Server-Timing")
OF_LIMITS = tuple(name for name in HEADERS if "RateLimit" in name)


class DeclaredSchema(AutoSchema):
    """An operation as its `@endpoint` says it; views without one are left to drf-spectacular."""

    registry: ComponentRegistry

    def get_operation(
        self,
        path: str,
        path_regex: str,
        path_prefix: str,
        method: str,
        registry: ComponentRegistry,
    ) -> Schema | None:
        action = getattr(self.view, getattr(self.view, "action", None) or "", None)
        declared: Endpoint | None = getattr(action, "endpoint", None)
        if declared is None:
            found: Schema | None = super().get_operation(
                path, path_regex, path_prefix, method, registry
            )
            return found
        self.registry = registry
        operation: Schema = {
            "operationId": _name(declared, path),
            "summary": declared.summary,
            "description": declared.description,
            "tags": list(declared.tags),
            "security": self._security(declared),
        }
        if parameters := [*self._in_path(action, path), *self._others(declared)]:
            operation["parameters"] = parameters
        if content := self._body(declared):
            operation["requestBody"] = {"content": content, "required": _is_required(declared)}
        operation["responses"] = self._responses(declared)
        gone = declared.deprecations.operation
        return deprecation.spoken(gone.mark(operation)) if gone else operation

    def _security(self, declared: Endpoint) -> list[Schema]:
        if declared.public:
            return []
        for name, scheme in declared.credential.schemes.items():
            self._component(name, ResolvedComponent.SECURITY_SCHEMA, dict(scheme))
        return [{name: []} for name in declared.credential.schemes]

    def _in_path(self, action: Any, path: str) -> Iterator[Schema]:
        hints = get_type_hints(action, include_extras=True) if "{" in path else {}
        for name in signature(action).parameters:
            if f"{{{name}}}" in path:
                schema = self._schema(hints[name], "validation")
                yield {"name": name, "in": "path", "required": True, "schema": schema}

    def _others(self, declared: Endpoint) -> Iterator[Schema]:
        if declared.query is not None:
            yield from self._in_query(declared.query)
        for one in declared.parameters:
            schema = build_basic_type(cast(Any, one.type))
            about = {"name": one.name, "in": one.location, "schema": schema}
            yield {**about, "description": one.description}

    @staticmethod
    def _in_query(model: type[Asked]) -> Iterator[Schema]:
        of_all = model.model_json_schema(mode="validation")
        required = of_all.get("required", ())
        for name, schema in of_all["properties"].items():
            about: Schema = {"name": name, "in": "query"}
            schema = deprecation.spoken(schema)
            if description := schema.pop("description", ""):
                about["description"] = description
            if name in required:
                about["required"] = True
            for word in ("deprecated", "x-sunset"):
                if word in schema:
                    about[word] = schema.pop(word)
            schema = _without_null(schema)
            schema.pop("title", None)
            if schema.get("default", "") in (None, "", []):
                schema.pop("default", None)
            if schema.get("type") == "array":
                about |= {"style": "form", "explode": False}  # `a,b`: the last of several counts
            yield {**about, "schema": schema}

    def _body(self, declared: Endpoint) -> Schema:
        kinds = dict(declared.takes) or {"application/json": declared.body}
        return {
            media_type: {"schema": self._schema(kind, "validation")}
            for media_type, kind in kinds.items()
            if kind is not None
        }

    def _responses(self, declared: Endpoint) -> Schema:
        found: Schema = {}
        for status, answer in sorted(declared.answers.items()):
            more: tuple[str, ...] = ()
            if declared.is_repeatable and status < 300:
                more = ("Idempotency-Replayed",)
            more += deprecation.NAMES if declared.deprecations else ()
            found[str(status)] = self._response(status, answer, more)
        by_status: dict[int, list[type[GatewayError]]] = {}
        for kind in sorted(declared.problems, key=lambda one: (one.status_code, one.code)):
            by_status.setdefault(kind.status_code, []).append(kind)
        for status, kinds in by_status.items():
            if str(status) in found:  # readiness says in its own words why it is 503
                problems = self._problem(status, kinds)["content"]
                found[str(status)]["content"] |= problems
                continue
            name = "Or".join(kind.__name__ for kind in kinds)
            response = self._problem(status, kinds)
            if declared.deprecations.operation:
                name = f"Deprecated{name}"
                response["headers"] |= _references(*deprecation.NAMES)
            found[str(status)] = self._component(name, ResolvedComponent.RESPONSE, response)
        return dict(sorted(found.items()))

    def _response(self, status: int, answer: Answer, more: tuple[str, ...]) -> Schema:
        response: Schema = {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(*answer.headers, *more),
        }
        content = {
            media_type: {"schema": self._schema(kind, "serialization")}
            for media_type, kind in answer.content.items()
        }
        return {**response, "content": content} if content else response

    def _problem(self, status: int, kinds: list[type[GatewayError]]) -> Schema:
        lines = [f"`{kind.code}`: {kind.title}" for kind in kinds]
        waits = ("Retry-After",) if status in (429, 503) else ()
        may_wait = {"Retry-After": MAY_WAIT} if status in (409, 504) else {}
        signs_in = ("WWW-Authenticate",) if status == 401 else ()
        return {
            "description": "; ".join(lines),
            "headers": {**_headers(*waits, *signs_in), **may_wait},
            "content": {CONTENT_TYPE: {"schema": self._schema(Problem, "serialization")}},
        }

    def _schema(self, kind: Any, mode: Mode) -> Schema:
        """Of a type; its models become components, and are referred to."""
        found, models = _described(kind, mode)
        for name, schema in models.items():
            self._component(name, ResolvedComponent.SCHEMA, schema)
        return found

    def _component(self, name: str, kind: str, schema: Schema) -> Schema:
        component = ResolvedComponent(name, kind, schema, object=name)  # type: ignore[no-untyped-call]
        self.registry.register_on_missing(component)
        if self.registry[component].schema != schema:
            raise ImproperlyConfigured(
                f"Two different things are called {name} in the document's {kind}, so one of them "
                "would be described by the other. Rename a model."
            )
        ref: Schema = component.ref
        return ref


@functools.cache
def _described(kind: Any, mode: Mode) -> tuple[Schema, dict[str, Schema]]:
    """The schema of a type, and those of the models that it refers to, by their names."""
    core = TypeAdapter(kind).core_schema
    found, models = GenerateJsonSchema(ref_template=REF).generate_definitions([("", mode, core)])
    return (
        _tidy(found["", mode], mode),
        {name: _tidy(schema, mode) for name, schema in models.items()},
    )


def _name(declared: Endpoint, path: str) -> str:
    name = declared.operation
    return name if isinstance(name, str) else name[path]


def _is_required(declared: Endpoint) -> bool:
    """`parse` takes an absent body for an empty object: where one will do, none will."""
    if declared.body is None:
        return True
    try:
        declared.body.model_validate({})
    except ValidationError:
        return True
    return False


def _headers(*names: str) -> Schema:
    return _references(*OF_ALL, *OF_LIMITS, *names)


def _references(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _tidy(schema: Schema, mode: Mode) -> Schema:
    """The same, with defaults as the module's paragraph says, and no titles made of names."""
    schema = deprecation.spoken({n: value for n, value in schema.items() if n != "title"})
    for keyword in ("items", "additionalProperties", "propertyNames", "not"):
        if isinstance(schema.get(keyword), dict):
            schema[keyword] = _tidy(schema[keyword], mode)
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if keyword in schema:
            schema[keyword] = [_tidy(one, mode) for one in schema[keyword]]
    if "properties" in schema:
        required = set(schema.pop("required", ()))
        properties = {}
        for name, value in schema["properties"].items():
            value = _tidy(value, mode)
            if "default" in value:
                default = value.pop("default")
                if mode == "validation":
                    value = _with_default_described(value, default)
                elif default is None:
                    value = _without_null(value)
                else:
                    required.add(name)
            properties[name] = value
        schema["properties"] = properties
        if required:
            schema["required"] = [name for name in properties if name in required]
    return schema


def _with_default_described(schema: Schema, default: Any) -> Schema:
    description = schema.get("description", "")
    if default in (None, "", [], {}) or "default" in description.lower():
        return schema
    shown = default if isinstance(default, str) else json.dumps(default)
    return {**schema, "description": f"{description} Default: `{shown}`.".strip()}


def _without_null(schema: Schema) -> Schema:
    if "anyOf" not in schema:
        return schema
    kinds = [one for one in schema["anyOf"] if one != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return {**rest, "anyOf": kinds} if len(kinds) > 1 else {**kinds[0], **rest}


def finish(result: Mapping[str, Any], generator: Any, **_: Any) -> dict[str, Any]:
    """Describe the headers once, those that some answer has."""
    text = orjson.dumps(result)
    used = {n: header for n, header in HEADERS.items() if f"/headers/{n}".encode() in text}
    components = {**result["components"], "headers": used}
    return {**result, "components": dict(sorted(components.items()))}


@dataclass(frozen=True, slots=True)
class Document:
    """As it is sent, and the tag of this very text."""

    plain: bytes
    gzipped: bytes
    etag: str


_making = Lock()


def document() -> Document:
    """The same for everybody, so each process makes it once, before it serves."""
    with _making:
        return _made()


@functools.cache
def _made() -> Document:
    schema = SchemaGenerator().get_schema(public=True)  # type: ignore[no-untyped-call]
    plain = orjson.dumps(schema)
    return Document(plain, gzip.compress(plain, mtime=0), f'"{sha256(plain).hexdigest()[:32]}"')
