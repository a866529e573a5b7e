"""What HTTP has a server refuse from the head of a request alone (RFC 9110, 9112, 6455).

The parser has split the head into its parts by then, and refused what cannot be split. What two
readers of one request could take for two things is refused here, before anybody looks at it: which
host is meant, where the body ends, how it is coded.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable, Sequence

from gateway_project.core import errors

Header = tuple[bytes, bytes]

VERSIONS = ("1.1", "1.0")
ASTERISK = "/*"
"""What the target of `OPTIONS *` is as a path: the server as a whole (RFC 9112 §3.2.4)."""
# A name or an address, with a port (RFC 9110 §7.2); of the letters of RFC 3986 those of DNS names,
# and the `_` that services may have in theirs.
HOST = re.compile(rb"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?")
PORT_MAX = 65_535
LENGTH_DIGITS_MAX = 20
"""Of 64 bits. The parser takes any number of zeros in front, and Python reads no 5,000 digits."""
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SELDOM = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
UNCODED = (b"", b"identity")
KEY_BYTES = 16
CLOSE = {"Connection": "close"}


def refusal(method: bytes, version: str, headers: Sequence[Header]) -> errors.GatewayError | None:
    """Why the request must not be served. Names of `headers` are in lower case."""
    hosts = []
    is_usual, is_countable = True, True
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name in SELDOM:
            is_usual = False
        elif name == b"content-length" and len(value) > LENGTH_DIGITS_MAX:
            is_countable = False
    if version not in VERSIONS:
        return errors.VersionNotSupported(headers=CLOSE)
    if method == b"CONNECT":
        return errors.NotImplementedHere("This is no proxy: send no CONNECT.", headers=CLOSE)
    if len(hosts) != 1 and (hosts or version == "1.1"):
        count = "no 'Host'" if not hosts else f"{len(hosts)} 'Host' headers"
        return _refused(f"The request has {count}. Send one, with the name in the address.")
    if hosts and not _is_host(hosts[0]):
        return _refused("'Host' is no host name. Send the name in the address, and its port.")
    if not is_countable:
        return _refused("'Content-Length' has too many digits. Send it without zeros in front.")
    if is_usual:
        return None
    return _unread(method, version, headers)


def _is_host(value: bytes) -> bool:
    found = HOST.fullmatch(value)
    return found is not None and int(found[2] or 0) <= PORT_MAX


def _unread(method: bytes, version: str, headers: Sequence[Header]) -> errors.GatewayError | None:
    codings = list(_tokens(headers, b"transfer-encoding"))
    if codings and version == "1.0":
        return _refused("HTTP/1.0 knows no 'Transfer-Encoding'. Send 'Content-Length'.")
    if codings and (codings[-1] != b"chunked" or codings.count(b"chunked") > 1):
        return _refused("'chunked' has to be the last 'Transfer-Encoding', and once.")
    if len(codings) > 1:
        return errors.NotImplementedHere(
            "Of 'Transfer-Encoding' only 'chunked' is known. Send the body uncompressed.",
            headers=CLOSE,
        )
    if has_body(headers) and any(
        coding not in UNCODED for coding in _tokens(headers, b"content-encoding")
    ):
        return errors.UnsupportedMediaType(
            "Bodies are read as they are sent: leave 'Content-Encoding' out, and send the body "
            "uncompressed.",
            headers={**CLOSE, "Accept-Encoding": "identity"},
        )
    if any(one not in (b"", b"100-continue") for one in _tokens(headers, b"expect")):
        return errors.ExpectationFailed(headers=CLOSE)
    if wants_websocket(method, version, headers):
        return _handshake(headers)
    return None


def wants_websocket(method: bytes, version: str, headers: Sequence[Header]) -> bool:
    """Whether it is a handshake. Any other upgrade is passed over, as RFC 9110 §7.8 allows."""
    return (
        method == b"GET"
        and version == "1.1"
        and b"websocket" in _tokens(headers, b"upgrade")
        and b"upgrade" in _tokens(headers, b"connection")
    )


def _handshake(headers: Sequence[Header]) -> errors.GatewayError | None:
    """What RFC 6455 §4.2.1 has refused, and a body, which no handshake has."""
    if has_body(headers):
        return _refused("A WebSocket handshake has no body. Send it without.")
    if list(_tokens(headers, b"sec-websocket-version")) != [b"13"]:
        return errors.UpgradeRequired()
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    try:
        sizes = [len(b64decode(key, validate=True)) for key in keys]
    except binascii.Error:
        sizes = []
    if sizes != [KEY_BYTES]:
        return _refused("'Sec-WebSocket-Key' has to be there once: 16 random bytes in Base64.")
    # What is no list of tokens the WebSocket library would refuse, in words of its own.
    if not all(map(TOKEN.fullmatch, _tokens(headers, b"sec-websocket-protocol"))):
        return _refused("'Sec-WebSocket-Protocol' has to be a list of tokens: 'bearer, <token>'.")
    return None


def has_body(headers: Sequence[Header]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in headers
    )


def _tokens(headers: Iterable[Header], wanted: bytes) -> Iterable[bytes]:
    """Of a header that is a list, in one line or several (RFC 9110 §5.3)."""
    for name, value in headers:
        if name == wanted:
            yield from (token.strip(b" \t").lower() for token in value.split(b","))


def _refused(detail: str) -> errors.GatewayError:
    return errors.BadRequest(detail, headers=CLOSE)
