"""Bytes on the wire of a served process, and the one right answer to each (RFC 9110, 9112, 6455).

Each exchange has five seconds, and ends in a status and a code, or in nothing but a closed
connection where that is what is right. What is refused is a problem with a request id, whichever
layer refused it; whatever came, the next caller is served.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gateway_project.server import heads
from gateway_project.server.protocol import HEADERS_MAX, LINE_BYTES_MAX
from gateway_project.tests.conftest import running
from gateway_project.tests.served import Served

pytestmark = [pytest.mark.served, pytest.mark.hostile]
SECONDS_MAX = 5.0
QUIET_SECONDS = 0.4
"""After which a connection that says nothing more is taken to stay open."""
MIB = 1 << 20
End = Literal["open", "closed"]


@dataclass(frozen=True)
class Exchange:
    """`sent` in Latin-1; {key} is a key's text. `status` 0: nothing is said."""

    name: str
    sent: str
    status: int
    code: str = ""
    says: str = ""
    """A part of the answer, head or body, whatever the case."""
    end: End | None = None
    answers: int = 1


def request(target: str, *headers: str, body: str = "", host: str = "127.0.0.1") -> str:
    lines = [f"{target} HTTP/1.1", f"Host: {host}", *headers, "", body]
    return "\r\n".join(lines)


TEXT = '{"text": "Good morning."}'
LIMITS = "GET /v1/limits"
KEY = "X-API-Key: {key}"
PAGE = "GET /guides/quickstart"
CHUNKS = f"19\r\n{TEXT}\r\n0\r\n\r\n"
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade")
SOCKET = (*UPGRADE, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
LIVE = "GET /ws/queue"


def detect(*headers: str, body: str = TEXT, length: bool = True) -> str:
    size = len(body.encode("latin-1"))
    lengths = (f"Content-Length: {size}",) if length else ()
    fixed = (KEY, "Content-Type: application/json", *headers, *lengths)
    return request("POST /v1/detect", *fixed, body=body)


HOSTS = [
    Exchange("one host", request(LIMITS, KEY), 200, end="open"),
    Exchange("no host", f"{LIMITS} HTTP/1.1\r\n{KEY}\r\n\r\n", 400, "bad_request", "no 'Host'"),
    Exchange("no host, a page", f"{PAGE} HTTP/1.1\r\n\r\n", 400, "bad_request", "no 'Host'"),
    Exchange("two equal hosts", request(LIMITS, "Host: 127.0.0.1", KEY), 400, "bad_request"),
    Exchange("two hosts", request(LIMITS, "Host: localhost", KEY), 400, "bad_request", "2 'Host'"),
    Exchange("two hosts, a page", request(PAGE, "Host: 127.0.0.1"), 400, "bad_request"),
    Exchange("a list of hosts", request(LIMITS, KEY, host="127.0.0.1, a"), 400, "bad_request"),
    Exchange("an empty host", request(LIMITS, KEY, host=""), 400, "bad_request", "no host name"),
    Exchange("a host with a user", request(LIMITS, KEY, host="a@127.0.0.1"), 400, "bad_request"),
    Exchange("a host with a path", request(LIMITS, KEY, host="127.0.0.1/a"), 400, "bad_request"),
    Exchange("a host with blanks inside", request(LIMITS, KEY, host="a b"), 400, "bad_request"),
    Exchange("a host with a word for port", request(LIMITS, KEY, host="a:b"), 400, "bad_request"),
    Exchange("a host that is not ASCII", request(LIMITS, KEY, host="\xe4.de"), 400, "bad_request"),
    Exchange("a host with its port", request(LIMITS, KEY, host="127.0.0.1:8000"), 200),
    Exchange("a port beyond all ports", request(LIMITS, KEY, host="127.0.0.1:65536"), 400,
             "bad_request", "no host name"),
    Exchange("the last port", request(LIMITS, KEY, host="127.0.0.1:65535"), 200),
    Exchange("no port behind the colon", request(LIMITS, KEY, host="127.0.0.1:"), 200),
    Exchange("blanks around the host", request(LIMITS, KEY, host=" \t127.0.0.1\t "), 200),
    Exchange("a name in capitals", request(LIMITS, KEY, host="LOCALHOST"), 200),
    Exchange("a foreign host", request(LIMITS, KEY, host="evil.example"), 400, "bad_request",
             "ALLOWED_HOSTS", "open"),
    Exchange("a foreign host, text", request("POST /v1/detect", KEY, "Content-Length: 0",
             host="evil.example"), 400, "bad_request", "ALLOWED_HOSTS"),
    Exchange("a foreign host, keys", request("GET /v1/keys", KEY, host="evil.example"), 400,
             "bad_request", "ALLOWED_HOSTS"),
    Exchange("a foreign host, a page", request(PAGE, host="evil.example"), 400, "bad_request"),
    Exchange("a foreign host, Robin", request("GET /api/v1/queue", host="evil.example"), 400,
             "bad_request"),
    Exchange("a foreign host, metrics", request("GET /metrics", host="10.0.0.7"), 400,
             "bad_request"),
    Exchange("a foreign host, health", request("GET /health/live", host="10.0.0.7:8000"), 200),
    Exchange("what a proxy says of the host", request(LIMITS, KEY, "X-Forwarded-Host: evil.example",
             "Forwarded: host=evil.example"), 200),
]  # fmt: skip
TARGETS = [
    Exchange("a whole address", request(f"GET http://127.0.0.1{LIMITS[4:]}", KEY), 200),
    Exchange("of which the host counts", request(f"GET http://127.0.0.1{LIMITS[4:]}", KEY,
             host="evil.example"), 200),
    Exchange("a whole foreign address", request("GET http://evil.example/v1/limits", KEY), 400,
             "bad_request", "ALLOWED_HOSTS"),
    Exchange("a whole address and two hosts", request("GET http://127.0.0.1/v1/limits", "Host: a"),
             400, "bad_request"),
    Exchange("a whole address without a path", request("GET http://127.0.0.1"), 200),
    Exchange("a whole address with a user", request("GET http://a@127.0.0.1/"), 400, "bad_request"),
    Exchange("another scheme", request("GET ftp://127.0.0.1/"), 400, "bad_request", "neither"),
    Exchange("a host alone", request("GET 127.0.0.1:80"), 400, "bad_request"),
    Exchange("no slash", request("GET v1/limits", KEY), 400, "bad_request"),
    Exchange("two slashes", request("GET //v1/limits", KEY), 404, "not_found"),
    Exchange("a fragment", request("GET /v1/limits#a", KEY), 400, "bad_request", "'#'", "closed"),
    Exchange("a fragment behind a query", request("GET /changelog?a=1#b"), 400, "bad_request"),
    Exchange("a whole address and a fragment", request("GET http://127.0.0.1/#a"), 400,
             "bad_request"),
    Exchange("a blank in it", request("GET /v1/ limits", KEY), 400, "bad_request"),
    Exchange("letters that are not ASCII", request("GET /v1/limits?a=\xe4", KEY), 400,
             "bad_request"),
    Exchange("a path that is not ASCII", request("GET /v1/limits\xe4", KEY), 400, "bad_request"),
    Exchange("NUL in it", request("GET /v1/limits\x00", KEY), 400, "bad_request"),
    Exchange("NUL, escaped, in the path", request("GET /v1/limits%00", KEY), 422,
             "validation_error", '"field":"path"'),
    Exchange("NUL, escaped, in the query", request("GET /v1/limits?name=%00", KEY), 422,
             "validation_error", '"field":"name"'),
    Exchange("a name twice in the query", request("GET /v1/requests?limit=1&limit=2", KEY), 422,
             "validation_error", '"field":"limit"'),
    Exchange("more parameters than are read", request(f"GET /v1/limits?{'a&' * 1000}", KEY), 400,
             "bad_request", "1,000 fields"),
    Exchange("more of a page", request(f"GET /changelog?{'a&' * 1000}"), 400, "bad_request",
             "1,000 fields"),
    Exchange("as many as are read", request("GET /v1/limits?" + "&".join(map(str, range(1000))),
             KEY), 200),
    Exchange("bytes that are no UTF-8, escaped", request("GET /v1/limits?a=%ff", KEY), 200),
    Exchange("all of the server", request("OPTIONS *"), 204, end="open"),
    Exchange("all of the server, read", request("GET *"), 400, "bad_request"),
    Exchange("a proxy's request", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
             501, "not_implemented", end="closed"),
    Exchange("as long as may be", request(f"GET /{'a' * (LINE_BYTES_MAX - 1)}"), 404, "not_found"),
    Exchange("too long", request(f"GET /{'a' * LINE_BYTES_MAX}"), 414, "address_too_long",
             end="closed"),
    Exchange("a query that is too long", request(f"GET /v1/limits?{'a' * LINE_BYTES_MAX}", KEY),
             414, "address_too_long"),
]  # fmt: skip
VERSIONS = [
    Exchange("0.9", "GET /v1/limits\r\n", 505, "version_not_supported", end="closed"),
    Exchange("0.9 with an empty line", "GET /v1/limits\r\n\r\n", 505, "version_not_supported"),
    Exchange("1.0", f"{LIMITS} HTTP/1.0\r\n{KEY}\r\n\r\n", 200, end="closed"),
    Exchange("1.0, a page", f"{PAGE} HTTP/1.0\r\n\r\n", 200, end="closed"),
    Exchange("1.0 that names a host", request(LIMITS, KEY).replace("HTTP/1.1", "HTTP/1.0"), 200),
    Exchange("1.0 and a foreign host", f"{LIMITS} HTTP/1.0\r\nHost: a\r\n{KEY}\r\n\r\n", 400,
             "bad_request"),
    Exchange("1.0 and a whole foreign address", f"GET http://evil.example{LIMITS[4:]} HTTP/1.0\r\n"
             f"{KEY}\r\n\r\n", 400, "bad_request", "ALLOWED_HOSTS"),
    Exchange("1.0 and a whole address", f"GET http://127.0.0.1{LIMITS[4:]} HTTP/1.0\r\n"
             f"{KEY}\r\n\r\n", 200, end="closed"),
    Exchange("1.0 and two hosts", f"{LIMITS} HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400,
             "bad_request"),
    Exchange("1.0 and chunks", detect("Transfer-Encoding: chunked", body=CHUNKS, length=False)
             .replace("HTTP/1.1", "HTTP/1.0"), 400, "bad_request", "HTTP/1.0"),
    Exchange("1.0 does not wait for 100", detect("Expect: 100-continue").replace(
             "HTTP/1.1", "HTTP/1.0"), 200, says='"decision":"allow"', end="closed"),
    Exchange("1.0 and an upgrade", request(LIVE, *SOCKET).replace("HTTP/1.1", "HTTP/1.0"), 426,
             "upgrade_required"),
    Exchange("1.2", request(LIMITS, KEY).replace("HTTP/1.1", "HTTP/1.2"), 505,
             "version_not_supported"),
    Exchange("2.0", request(LIMITS, KEY).replace("HTTP/1.1", "HTTP/2.0"), 505,
             "version_not_supported"),
    Exchange("2, as it begins", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_not_supported"),
    Exchange("9.9", request(LIMITS).replace("HTTP/1.1", "HTTP/9.9"), 505, "version_not_supported"),
    Exchange("no number", request(LIMITS).replace("HTTP/1.1", "HTTP/x"), 505,
             "version_not_supported"),
    Exchange("another protocol", request(LIMITS).replace("HTTP/1.1", "SIP/2.0"), 400,
             "bad_request"),
    Exchange("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
    Exchange("SSH", "SSH-2.0-OpenSSH_9.2\r\n", 400, "bad_request"),
    Exchange("NULs", "\x00\x00\x00\x00\r\n\r\n", 400, "bad_request"),
    Exchange("empty lines before", "\r\n\r\n" + request(LIMITS, KEY), 200),
]  # fmt: skip
METHODS = [
    Exchange("one that nobody knows", request("BREW /v1/detect"), 501, "not_implemented"),
    Exchange("in small letters", request("get /v1/limits"), 501, "not_implemented"),
    Exchange("one of RTSP", request("DESCRIBE /v1/limits", KEY), 501, "not_implemented"),
    Exchange("one of Icecast", request("SOURCE /v1/limits", KEY), 405, "method_not_allowed"),
    Exchange("TRACE", request("TRACE /v1/limits", KEY), 405, "method_not_allowed",
             "allow: head, get\r"),
    Exchange("TRACE of a page", request("TRACE /changelog"), 405, "method_not_allowed",
             "allow: get, head\r"),
    Exchange("PROPFIND of a page", request("PROPFIND /"), 405, "method_not_allowed"),
    Exchange("PUT of a page", request("PUT /changelog", "Content-Length: 0"), 405,
             "method_not_allowed", "allow: get, head\r"),
    Exchange("POST of a page without a form", request("POST /changelog", "Content-Length: 0"), 405,
             "method_not_allowed"),
    Exchange("GET of a text", request("GET /v1/detect", KEY), 405, "method_not_allowed",
             "allow: post\r"),
    Exchange("DELETE of keys", request("DELETE /v1/keys", KEY), 405, "method_not_allowed",
             "allow: get, post, head\r"),
    Exchange("OPTIONS of a text", request("OPTIONS /v1/detect"), 405, "method_not_allowed",
             "allow: post\r"),
    Exchange("OPTIONS of keys", request("OPTIONS /v1/keys"), 405, "method_not_allowed",
             "allow: get, post, head\r"),
    Exchange("HEAD", request("HEAD /health/live"), 200, says="content-length: 15\r"),
    Exchange("HEAD of a page", request("HEAD /"), 200, says="content-type: text/html"),
    Exchange("HEAD of what is refused", request("HEAD /v1/limits"), 401, says="content-length: "),
    Exchange("HEAD with too many headers", request("HEAD /health/live", *["A: b"] * 130), 431,
             says="content-length: ", end="closed"),
    Exchange("HEAD of nothing", request("HEAD /nowhere"), 404, says="content-length: "),
]  # fmt: skip
BODIES = [
    Exchange("a length", detect(), 200, says='"decision":"allow"', end="open"),
    Exchange("chunks", detect("Transfer-Encoding: chunked", body=CHUNKS, length=False), 200,
             says='"decision":"allow"', end="open"),
    Exchange("chunks in capitals", detect("Transfer-Encoding: CHUNKED", body=CHUNKS, length=False),
             200),
    Exchange("chunks with extensions", detect("Transfer-Encoding: chunked", length=False,
             body=CHUNKS.replace("19\r", "19;a=b\r")), 200),
    Exchange("what stands behind the chunks is no header", request("POST /v1/detect",
             "Content-Type: application/json", "Transfer-Encoding: chunked",
             body=CHUNKS[:-2] + KEY + "\r\n\r\n"), 401, "missing_api_key"),
    Exchange("chunks and a length", detect("Transfer-Encoding: chunked", body=CHUNKS), 400,
             "bad_request", end="closed"),
    Exchange("gzip and chunks", detect("Transfer-Encoding: gzip, chunked", body=CHUNKS,
             length=False), 501, "not_implemented", "chunked", "closed"),
    Exchange("gzip and chunks in two lines", detect("Transfer-Encoding: gzip",
             "Transfer-Encoding: chunked", body=CHUNKS, length=False), 501, "not_implemented"),
    Exchange("gzip and chunks, keys", request("POST /v1/keys", KEY,
             "Transfer-Encoding: gzip, chunked", body=CHUNKS), 501, "not_implemented"),
    Exchange("no chunks at the end", detect("Transfer-Encoding: gzip", length=False), 400,
             "bad_request", end="closed"),
    Exchange("chunks, then gzip", detect("Transfer-Encoding: chunked, gzip", length=False), 400,
             "bad_request"),
    Exchange("chunks of chunks", detect("Transfer-Encoding: chunked, chunked", length=False), 400,
             "bad_request"),
    Exchange("identity", detect("Transfer-Encoding: identity", length=False), 400, "bad_request"),
    Exchange("almost chunks", detect("Transfer-Encoding: xchunked", length=False), 400,
             "bad_request"),
    Exchange("a size that is no number", detect("Transfer-Encoding: chunked", length=False,
             body="zz\r\nab\r\n0\r\n\r\n"), 400, "bad_request", end="closed"),
    Exchange("a negative size", detect("Transfer-Encoding: chunked", length=False,
             body="-2\r\nab\r\n0\r\n\r\n"), 400, "bad_request"),
    Exchange("a size too large for any number", detect("Transfer-Encoding: chunked", length=False,
             body="f" * 20 + "\r\nab\r\n0\r\n\r\n"), 400, "bad_request"),
    Exchange("a chunk longer than its size", detect("Transfer-Encoding: chunked", length=False,
             body="2\r\nabcd\r\n0\r\n\r\n"), 400, "bad_request"),
    Exchange("gzip", detect("Content-Encoding: gzip"), 415, "unsupported_media_type",
             "accept-encoding: identity\r", "closed"),
    Exchange("gzip twice", detect("Content-Encoding: gzip, gzip"), 415, "unsupported_media_type"),
    Exchange("br, a page", request("POST /accounts/login/", "Content-Encoding: br",
             "Content-Length: 2", body="ab"), 415, "unsupported_media_type", "accept-encoding"),
    Exchange("zstd, chunked", detect("Content-Encoding: zstd", "Transfer-Encoding: chunked",
             body=CHUNKS, length=False), 415, "unsupported_media_type"),
    Exchange("one that nobody knows", detect("Content-Encoding: x"), 415, "unsupported_media_type"),
    Exchange("identity is none", detect("Content-Encoding: identity"), 200),
    Exchange("a coding of no body", request(LIMITS, KEY, "Content-Encoding: gzip"), 200),
    Exchange("a type of no body", request(LIMITS, KEY, "Content-Type: application/json"), 200),
    Exchange("a body where none is wanted", request(LIMITS, KEY, "Content-Length: 2", body="ab"),
             200, end="open"),
    Exchange("no body, and none is said", request("POST /v1/detect", KEY,
             "Content-Type: application/json"), 400, "invalid_json", "The body is empty"),
    Exchange("no type", request("POST /v1/detect", KEY, "Content-Length: 25", body=TEXT), 415,
             "unsupported_media_type", "application/json"),
    Exchange("a type with a charset", detect().replace("json\r", "json; charset=x\r"), 200),
    Exchange("a type with a charset that is none", detect().replace("json\r",
             "json; charset*=x''a\r"), 400, "bad_request", "RFC 2231"),
    Exchange("a type with NUL, escaped", request(PAGE, "Content-Type: a/b; charset*=utf-8''%00"),
             400, "bad_request", "RFC 2231"),
    Exchange("a type in very many parts", request(PAGE, f"Content-Type: a/b; x*{'9' * 5000}=a"),
             400, "bad_request", "RFC 2231"),
    Exchange("a form without a boundary", request("POST /accounts/login/",
             f"Cookie: csrftoken={'a' * 32}", "Content-Type: multipart/form-data",
             "Content-Length: 2", body="ab"), 400, "bad_request", "boundary"),
    Exchange("a form", detect().replace("application/json", "application/x-www-form-urlencoded"),
             415, "unsupported_media_type"),
    Exchange("two types", detect("Content-Type: text/plain"), 415, "unsupported_media_type"),
    Exchange("a type with blanks around", detect().replace("application/json",
             " \tapplication/json ; charset=utf-8 \t"), 200),
    Exchange("two equal lengths", detect("Content-Length: 25"), 400, "bad_request", end="closed"),
    Exchange("two lengths", detect("Content-Length: 24"), 400, "bad_request"),
    Exchange("a list of lengths", detect("Content-Length: 25, 25", length=False), 400,
             "bad_request"),
    Exchange("a length with a sign", detect("Content-Length: +25", length=False), 400,
             "bad_request"),
    Exchange("a negative length", detect("Content-Length: -1", length=False), 400, "bad_request"),
    Exchange("a length in hexadecimal", detect("Content-Length: 0x19", length=False), 400,
             "bad_request"),
    Exchange("a length of nothing", detect("Content-Length:", length=False), 400, "bad_request"),
    Exchange("a length beyond all numbers", detect(f"Content-Length: {10**30}", length=False), 400,
             "bad_request"),
    Exchange("a length with a zero in front", detect("Content-Length: 025", length=False), 200),
    *(
        Exchange(f"a length with 5,000 zeros in front, {what}", request(target, KEY,
                 "Content-Length: " + "0" * 5_000 + "2", body="{}"), 400, "bad_request", "zeros")
        for what, target in (
            ("text", "POST /v1/detect"), ("a guardrail", "POST /beta/litellm_basic_guardrail_api"),
            ("a key", "POST /v1/keys"), ("a page", PAGE), ("health", "GET /health"),
        )
    ),
    Exchange("a length with blanks around", detect("Content-Length: \t25 \t", length=False), 200),
    Exchange("too much, said before", detect(f"Content-Length: {50 * MIB}", body="", length=False),
             413, "body_too_large", "160 KiB", "closed"),
    Exchange("too much, said before, a page", request("POST /accounts/login/",
             f"Content-Length: {50 * MIB}"), 413, "body_too_large", end="closed"),
    Exchange("too much, asked before", detect("Expect: 100-continue",
             f"Content-Length: {50 * MIB}", body="", length=False), 413, "body_too_large",
             end="closed"),
    Exchange("100 is given", detect("Expect: 100-continue"), 100, says='"decision":"allow"',
             answers=2),
    Exchange("100 with blanks around", detect("Expect:  100-Continue\t "), 100, answers=2),
    Exchange("an empty expectation", detect("Expect:"), 200),
    Exchange("100 among empty ones", detect("Expect: , 100-continue,"), 100, answers=2),
    Exchange("another expectation", detect("Expect: 200-ok"), 417, "expectation_failed",
             end="closed"),
    Exchange("another expectation, a page", request(PAGE, "Expect: a"), 417, "expectation_failed"),
    Exchange("a mark before", detect(body="\xef\xbb\xbf" + TEXT), 400, "invalid_json",
             "byte order mark"),
    Exchange("UTF-16", detect(body="\xff\xfe" + "\x00".join(TEXT)), 400, "invalid_json", "UTF-16"),
    Exchange("UTF-16 without a mark", detect(body="\x00" + "\x00".join(TEXT)), 400, "invalid_json",
             "UTF-16"),
    Exchange("UTF-32", detect(body="\xff\xfe\x00\x00" + "\x00\x00\x00".join(TEXT)), 400,
             "invalid_json", "UTF-32"),
    Exchange("Windows-1252", detect(body=TEXT.replace("morning", "\x93morning\x94")), 400,
             "invalid_json", "Windows-1252"),
    Exchange("compressed, and it says nothing", detect(body="\x1f\x8b\x08"), 400, "invalid_json",
             "gzip"),
    Exchange("a name twice", detect(body=TEXT.replace('"text"', '"text": "a", "text"')), 422,
             "validation_error", '"field":"text"'),
]  # fmt: skip
HEADERS = [
    Exchange("blanks around a key", request(LIMITS, "X-API-Key: \t {key} \t"), 200),
    Exchange("blanks around a bearer", request(LIMITS, "Authorization:  Bearer {key}\t"), 200),
    Exchange("no blank before a key", request(LIMITS, "X-API-Key:{key}"), 200),
    Exchange("names in any letters", request(LIMITS, "x-aPi-kEY: {key}"), 200),
    Exchange("two keys", request(LIMITS, KEY, KEY), 401, "invalid_api_key"),
    Exchange("a blank before the colon", request(LIMITS, "X-API-Key : {key}"), 400, "bad_request"),
    Exchange("a blank before the name", request(LIMITS, " X-API-Key: {key}"), 400, "bad_request"),
    Exchange("a value in two lines", request(LIMITS, "X-A: b\r\n c", KEY), 400, "bad_request"),
    Exchange("no colon", request(LIMITS, "nonsense", KEY), 400, "bad_request"),
    Exchange("no name", request(LIMITS, ": a", KEY), 400, "bad_request"),
    Exchange("a name that is none", request(LIMITS, "X(A): b", KEY), 400, "bad_request"),
    Exchange("no value", request(LIMITS, "X-A:", KEY), 200),
    Exchange("NUL in a value", request(LIMITS, "X-A: b\x00", KEY), 400, "bad_request"),
    Exchange("a control character in a value", request(LIMITS, "X-A: b\x01", KEY), 400,
             "bad_request"),
    Exchange("a line feed alone", request(LIMITS, KEY).replace("\r\n", "\n"), 400, "bad_request"),
    Exchange("a carriage return alone", request(LIMITS, "X-A: b\rX-B: c", KEY), 400, "bad_request"),
    Exchange("letters that are not ASCII", request(LIMITS, "X-A: \xe4", KEY), 200),
    Exchange("as many as may be", request(LIMITS, KEY, *["A: b"] * (HEADERS_MAX - 2)), 200),
    Exchange("one more", request(LIMITS, KEY, *["A: b"] * (HEADERS_MAX - 1)), 431,
             "headers_too_large", end="closed"),
    Exchange("very many", request(PAGE, *["A: b"] * 8000), 431, "headers_too_large"),
    Exchange("a large one", request(LIMITS, KEY, f"X-A: {'a' * (LINE_BYTES_MAX - 100)}"), 200),
    Exchange("a larger one", request(LIMITS, KEY, f"X-A: {'a' * LINE_BYTES_MAX}"), 431,
             "headers_too_large"),
    Exchange("one of a mebibyte", request(LIMITS, KEY, f"X-A: {'a' * MIB}"), 431,
             "headers_too_large", end="closed"),
    Exchange("a large name", request(LIMITS, KEY, f"{'a' * 40_000}: b"), 431, "headers_too_large"),
    Exchange("large ones", request(LIMITS, KEY, *[f"X-A: {'a' * 7000}"] * 5), 431,
             "headers_too_large"),
    Exchange("many behind the body", detect("Transfer-Encoding: chunked", length=False,
             body=CHUNKS[:-2] + f"X-A: {'a' * 7000}\r\n" * 6 + "\r\n"), 431, "headers_too_large"),
]  # fmt: skip
SEVERAL = [
    Exchange("three at once", request(LIMITS, KEY) * 3, 200, end="open", answers=3),
    Exchange("none behind a close", request(LIMITS, "Connection: close") + request(LIMITS) * 2, 401,
             "missing_api_key", end="closed"),
    Exchange("nonsense behind one", request(LIMITS, KEY) + "\x01\x02\x03\r\n\r\n", 200,
             end="closed"),
    Exchange("a request hidden in a body", request(LIMITS, KEY, "Content-Length: 40",
             body="GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"[:40]), 200, end="open"),
    Exchange("a request behind a refused one", request(LIMITS, "Host: a", KEY) +
             request(LIMITS, KEY), 400, "bad_request", end="closed"),
    Exchange("a request behind chunks and a length", detect("Transfer-Encoding: chunked",
             body="0\r\n\r\n" + request(LIMITS, KEY)), 400, "bad_request", end="closed"),
]  # fmt: skip
UPGRADES = [
    Exchange("a handshake", request(LIVE, *SOCKET), 101, says="sec-websocket-accept"),
    Exchange("among others", request(LIVE, "Upgrade: foo, WebSocket", "Connection: keep-alive",
             "Connection: upgrade", *SOCKET[2:]), 101),
    Exchange("a length of nothing", request(LIVE, *SOCKET, "Content-Length: 0"), 101),
    Exchange("elsewhere", request("GET /ws/nothing", *SOCKET), 404, "not_found", end="closed"),
    Exchange("of an endpoint", request(LIMITS, KEY, *SOCKET), 404, "not_found"),
    Exchange("no upgrade", request(LIVE), 426, "upgrade_required", "upgrade: websocket\r", "open"),
    Exchange("no connection", request(LIVE, SOCKET[0], *SOCKET[2:]), 426, "upgrade_required"),
    Exchange("with a POST", request(LIVE.replace("GET", "POST"), *SOCKET, "Content-Length: 0"),
             426, "upgrade_required"),
    Exchange("a body", request(LIVE, *SOCKET, "Content-Length: 3", body="abc"), 400, "bad_request",
             "no body", "closed"),
    Exchange("behind a request", request(LIMITS, KEY) + request(LIVE, *SOCKET), 200, end="closed"),
    Exchange("a body that never comes", request(LIVE, *SOCKET, "Content-Length: 9"), 400,
             "bad_request", "no body", "closed"),
    Exchange("chunks", request(LIVE, *SOCKET, "Transfer-Encoding: chunked", body="0\r\n\r\n"), 400,
             "bad_request", "no body", "closed"),
    Exchange("gzip and chunks", request(LIVE, *SOCKET, "Transfer-Encoding: gzip, chunked"), 501,
             "not_implemented"),
    Exchange("no host", request(LIVE, *SOCKET).replace("Host: 127.0.0.1\r\n", ""), 400,
             "bad_request", "no 'Host'"),
    Exchange("two hosts", request(LIVE, "Host: a", *SOCKET), 400, "bad_request"),
    Exchange("a foreign host", request(LIVE, *SOCKET, host="evil.example"), 400, "bad_request",
             "ALLOWED_HOSTS", "closed"),
    Exchange("no key", request(LIVE, *UPGRADE, SOCKET[3]), 400, "bad_request", "Sec-WebSocket-Key"),
    Exchange("half a key", request(LIVE, *UPGRADE, "Sec-WebSocket-Key: YWJj", SOCKET[3]), 400,
             "bad_request", "Sec-WebSocket-Key"),
    Exchange("a key that is none", request(LIVE, *UPGRADE, "Sec-WebSocket-Key: %", SOCKET[3]), 400,
             "bad_request"),
    Exchange("two keys", request(LIVE, *SOCKET, SOCKET[2]), 400, "bad_request"),
    Exchange("a protocol that is no token", request(LIVE, *SOCKET,
             "Sec-WebSocket-Protocol: bearer, \xff"), 400, "bad_request", "list of tokens"),
    Exchange("protocols without a name", request(LIVE, *SOCKET, "Sec-WebSocket-Protocol: ,,"), 400,
             "bad_request", "list of tokens"),
    Exchange("protocols in two lines", request(LIVE, *SOCKET, "Sec-WebSocket-Protocol: bearer",
             "Sec-WebSocket-Protocol: a.b.c"), 101, says="sec-websocket-protocol: bearer"),
    Exchange("no version", request(LIVE, *SOCKET[:3]), 426, "upgrade_required",
             "sec-websocket-version: 13\r"),
    Exchange("an old version", request(LIVE, *SOCKET[:3], "Sec-WebSocket-Version: 8"), 426,
             "upgrade_required", "sec-websocket-version: 13\r"),
    Exchange("40 kB of headers", request(LIVE, *SOCKET, f"X-A: {'a' * 40_000}"), 431,
             "headers_too_large", end="closed"),
    Exchange("the largest header", request(LIVE, *SOCKET, f"X-A: {'a' * (LINE_BYTES_MAX - 7)}"),
             101),
    Exchange("very many headers", request(LIVE, *SOCKET, *["A: b"] * 130), 431,
             "headers_too_large"),
    Exchange("as many headers as may be", request(LIVE, *SOCKET, *["A: b"] * (HEADERS_MAX - 5)),
             101),
    Exchange("the longest address", request(f"{LIVE}?{'a' * (LINE_BYTES_MAX - 10)}", *SOCKET), 101),
    Exchange("too long an address", request(f"{LIVE}?{'a' * LINE_BYTES_MAX}", *SOCKET), 414,
             "address_too_long"),
    Exchange("NUL for a ticket", request(f"{LIVE}?ticket=%00", *SOCKET), 101, says="\x11\x31"),
    Exchange("another expectation", request(LIVE, *SOCKET, "Expect: a"), 417,
             "expectation_failed"),
    Exchange("to HTTP/2, which is passed over", request(LIMITS, KEY, "Upgrade: h2c",
             "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"), 200),
    Exchange("to HTTP/2, with a body", detect("Upgrade: h2c", "Connection: Upgrade"), 200,
             says='"decision":"allow"', end="open"),
    Exchange("to HTTP/2, with a body, keys", request("POST /v1/keys", KEY, "Upgrade: h2c",
             "Connection: upgrade", "Content-Type: application/json", "Content-Length: 2",
             body="{}"), 403, "scope_denied"),
    Exchange("to HTTP/2, and another request", detect("Upgrade: h2c", "Connection: Upgrade") +
             request(LIMITS, KEY), 200, answers=2, end="open"),
    Exchange("to TLS", request(LIMITS, KEY, "Upgrade: TLS/1.0", "Connection: Upgrade"), 200),
]  # fmt: skip
KINDS = {
    "host": HOSTS, "target": TARGETS, "version": VERSIONS, "method": METHODS, "body": BODIES,
    "headers": HEADERS, "several": SEVERAL, "upgrade": UPGRADES,
}  # fmt: skip
TABLE = [pytest.param(e, id=f"{kind}: {e.name}") for kind, all_of in KINDS.items() for e in all_of]


@pytest.fixture(scope="module")
def _gateway(_gateway_session: Any, tmp_path_factory: Any) -> Iterator[Served]:
    # There is no Robin, and nobody who could ask it: only the handshake is looked at.
    robin = {f"ROBIN_{name}_API_URL": "http://127.0.0.1:9" for name in ("CLIENT", "SERVICE")}
    with running(
        tmp_path_factory.mktemp("raw"),
        WORKERS="1",
        ALLOWED_HOSTS="127.0.0.1,localhost",
        RATE_LIMIT_ENABLED="false",
        **robin,
    ) as served:
        yield served


@pytest.fixture
def served(gateway: Any, engine: Any, _gateway: Served) -> Served:
    return _gateway


def exchange(port: int, sent: bytes) -> tuple[bytes, End]:
    """What came back within the time, and whether the connection then stayed open."""
    deadline = time.monotonic() + SECONDS_MAX
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as connection:
        connection.sendall(sent)
        try:
            while part := connection.recv(1 << 16):
                answer += part
                connection.settimeout(QUIET_SECONDS)
                assert time.monotonic() < deadline
        except TimeoutError:
            return answer, "open"
    return answer, "closed"


def parts(answer: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the last answer."""
    start = answer.rfind(b"HTTP/1.1 ")
    head, _, body = answer[start:].partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head + b"\r\n", body


def test_the_table_is_large_and_says_each_thing_once() -> None:
    ids = [str(row.id) for row in TABLE]

    assert len(ids) >= 120
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("case", TABLE)
def test_the_right_answer(served: Served, acme_key: Any, case: Exchange) -> None:
    sent = case.sent.replace("{key}", acme_key).encode("latin-1")

    answer, end = exchange(served.port, sent)

    first = int(answer.split(b" ", 2)[1]) if answer else 0
    assert first == case.status, answer[:500]
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == case.answers, answer
    assert case.says.lower().encode("latin-1") in answer.lower(), answer
    assert case.end in (None, end)
    status, head, body = parts(answer)
    if 200 <= status < 500:  # RFC 9110 §6.6.1
        assert b"\r\ndate: " in head.lower()
    if case.sent.startswith("HEAD"):
        assert body == b""
    if status >= 400 and not case.sent.startswith("HEAD"):
        assert b"\r\ncontent-type: application/problem+json\r\n" in head.lower()
        problem = json.loads(body)
        assert problem["code"] == case.code
        assert problem["request_id"].encode() in head
        assert problem["detail"].endswith(".")
    if end == "open" and status not in (101, 426):
        assert b"connection: close" not in head.lower()
    assert served.detect(acme_key).status_code == 200


class TestWhoStillSends:
    """An answer that comes before the end of a body is read, and nobody sends for ever."""

    @pytest.mark.parametrize("target", ["POST /v1/detect", "POST /accounts/login/", "POST /health"])
    def test_it_is_refused_before_it_is_read_whole(
        self, served: Served, acme_key: Any, target: str
    ):
        body = b"x" * (20 * MIB)
        head = request(target, f"X-API-Key: {acme_key}", f"Content-Length: {len(body)}").encode()

        answer, end = exchange(served.port, head + body)

        assert parts(answer)[0] in (405, 413)
        assert end == "closed"

    def test_chunks_without_end(self, served: Served, acme_key: Any) -> None:
        head = request("POST /v1/detect", f"X-API-Key: {acme_key}", "Transfer-Encoding: chunked")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

        answer, end = exchange(served.port, head.encode() + chunk * 200)

        assert (parts(answer)[0], end) == (413, "closed")

    def test_it_is_left_alone_after_a_while(self, served: Served) -> None:
        head = request("POST /v1/detect", "Content-Length: 999999999").encode()
        sent = 0
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(head)
            with suppress(ConnectionError):
                while sent < 512 * MIB:
                    connection.sendall(b"x" * MIB)
                    sent += MIB

        assert sent < 128 * MIB


def test_an_answer_without_a_length_ends_with_the_connection_of_1_0(
    served: Served, make_key: Any
) -> None:
    """HTTP/1.0 knows no chunks (RFC 9112 §6.1)."""
    key = make_key(scopes=["batch", "detect"])
    stored = '{"requests": [{"id": "1", "text": "Good morning"}]}'
    r = parts(
        exchange(
            served.port,
            request(
                "POST /v1/detect/batch",
                f"X-API-Key: {key}",
                "Content-Type: application/json",
                "Prefer: respond-async",
                f"Content-Length: {len(stored)}",
                body=stored,
            ).encode(),
        )[0]
    )
    url = json.loads(r[2])["status_url"]
    head = f"GET {url} HTTP/1.0\r\nX-API-Key: {key}\r\nAccept: application/x-ndjson\r\n\r\n"

    answer, end = exchange(served.port, head.encode())

    assert parts(answer)[0] == 200
    assert b"transfer-encoding" not in parts(answer)[1].lower()
    assert end == "closed"


@pytest.mark.parametrize(
    ("headers", "is_body"),
    [
        ([], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"000")], False),
        ([(b"content-length", b"10")], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
def test_what_is_a_body(headers: Any, is_body: bool) -> None:
    assert heads.has_body(headers) is is_body
