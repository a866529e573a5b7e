"""Every code is documented, every foreign error is translated."""

import ast
import json
import re
from pathlib import Path

import pytest
from django import db
from django.core import exceptions as django_exceptions
from django.http import Http404
from pydantic import BaseModel, ValidationError
from rest_framework import exceptions as drf

from gateway_project.core import errors

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_lists_exactly_the_codes_of_the_code_with_their_statuses():
    text = (ROOT / "docs/errors.md").read_text()
    documented = {
        code: int(status)
        for status, code in re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", text, re.M)
    }

    assert documented == {code: kind.status_code for code, kind in errors.registered().items()}


def test_the_tree_in_the_module_names_every_class():
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__))

    assert drawn == {kind.__name__ for kind in errors.registered().values()} - {"GatewayError"}


def test_every_code_has_one_class_and_a_sentence_that_says_what_to_do():
    kinds = errors.registered()

    assert all(re.fullmatch(r"[a-z_]+", code) for code in kinds)
    assert all(kind.default_detail.endswith(".") for kind in kinds.values())


# A refusal that does not help is a support request. What helps is an act, a call, or somebody who
# can be asked.
ACTS = re.compile(
    r"\b(add|allow|ask|begin|call|can|change|check|choose|confirm|correct|decline|delete|discard|do|enable|leave|look|make"
    r"|mend|narrow|propose|read|refresh|reload|remove|repeat|report|retry|revoke|run|see|send|sign|split|take"
    r"|try|type|use|wait|withdraw|write|GET|POST|PUT|PATCH|DELETE)\b",
    re.I,
)
FOR_THE_LOG = {"status {}", "another media type", "unreadable"}  # no caller is shown these
APPS = ("accounts", "detection", "webhooks", "robin", "portal", "gateway_project")


def literal(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def details():
    """(where, text) of every refusal in the code: what is raised, what a class says by itself."""
    names = {kind.__name__ for kind in errors.registered().values()}
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    text = literal(node.args[0]) if called in names else None
                elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                    is_detail = getattr(target, "id", "") == "default_detail"
                    text = literal(node.value) if is_detail else None
                else:
                    continue
                if text is not None:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def test_every_refusal_says_what_to_do_next():
    found = list(details())

    assert len(found) > 100
    mute = [(where, text) for where, text in found if not ACTS.search(text)]
    assert [one for one in mute if one[1] not in FOR_THE_LOG] == []


@pytest.mark.parametrize(
    ("foreign", "code"),
    [
        (Http404(), "not_found"),
        (drf.NotFound(), "not_found"),
        (django_exceptions.ObjectDoesNotExist(), "internal_error"),
        (drf.MethodNotAllowed("PUT"), "method_not_allowed"),
        (drf.UnsupportedMediaType("text/plain"), "unsupported_media_type"),
        (drf.NotAcceptable(), "not_acceptable"),
        (drf.ParseError(), "invalid_json"),
        (drf.Throttled(wait=3), "rate_limited"),
        (drf.NotAuthenticated(), "missing_api_key"),
        (drf.AuthenticationFailed(), "missing_api_key"),
        (drf.PermissionDenied(), "permission_denied"),
        (django_exceptions.PermissionDenied(), "permission_denied"),
        (django_exceptions.RequestDataTooBig(), "body_too_large"),
        (django_exceptions.DisallowedHost(), "bad_request"),
        (drf.ValidationError({"a": ["wrong"]}), "validation_error"),
        (db.OperationalError(), "store_unavailable"),
        (db.InterfaceError(), "store_unavailable"),
        (ZeroDivisionError(), "internal_error"),
    ],
)
def test_it_translates_foreign_errors(foreign, code):
    assert errors.translate(foreign).code == code


def test_every_exception_of_drf_has_a_translation_of_its_own():
    kinds = [
        k for k in vars(drf).values() if isinstance(k, type) and issubclass(k, drf.APIException)
    ]
    built = {"MethodNotAllowed": ("PUT",), "UnsupportedMediaType": ("x/y",)}

    for kind in kinds:
        if kind is not drf.APIException:
            error = errors.translate(kind(*built.get(kind.__name__, ())))
            assert error.code != "internal_error", kind


def test_it_names_the_fields_of_drf_errors():
    error = errors.translate(drf.ValidationError({"a": {"b": ["no", "never"]}, "c": "wrong"}))

    assert error.errors == [
        {"field": "a.b", "message": "no"},
        {"field": "a.b", "message": "never"},
        {"field": "c", "message": "wrong"},
    ]


class Inner(BaseModel, extra="forbid"):
    size: int


class Outer(BaseModel, extra="forbid"):
    inner: list[Inner] | None = None
    name: str = ""


def test_it_lists_the_known_fields_beside_an_unknown_one_also_inside_lists():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": [{"size": 1, "sise": 2}], "nmae": 1})

    assert errors.from_pydantic(caught.value, Outer).errors == [
        {"field": "inner.0.sise", "message": "unknown field; known here: size"},
        {"field": "nmae", "message": "unknown field; known here: inner, name"},
    ]


def test_it_never_repeats_the_callers_values():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": [{"size": "top secret"}]})

    assert "secret" not in json.dumps(errors.from_pydantic(caught.value, Outer).errors)


def test_the_problem_has_the_members_of_rfc_9457_and_ours():
    body = json.loads(errors.problem(errors.NotFound(), instance="/v1/x", request_id="r"))

    assert body == {
        "type": "/problems/not_found",
        "title": "Not found",
        "status": 404,
        "detail": errors.NotFound.default_detail,
        "instance": "/v1/x",
        "code": "not_found",
        "request_id": "r",
        "errors": [],
    }
