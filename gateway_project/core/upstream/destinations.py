"""Where we may send to when a customer names the address: the one guard against SSRF.

`check(url)` is for the moment an address is given (registration, change, test, a request's own
`webhook_url`); `resolver.GuardedResolver` is for the moment it is dialled. Both ask
`Destination.vet`, and what was vetted is what is dialled: the resolver hands its addresses straight
to the connector, so a name that changes in between (DNS rebinding) changes nothing.

The networks are listed one by one, because `ipaddress.is_global` lets through NAT64, 6to4 and
multicast, and `is_private` misses carrier-grade NAT. Sources: IANA's special-purpose address
registries for IPv4 and IPv6 (RFC 6890 and its updates), and what clouds serve their machines at
addresses that look public. An address inside `WEBHOOK_ALLOWED_NETWORKS` may be private, and may use
http and any port; all others are https on 443 or 8443. `WEBHOOK_REFUSED_NETWORKS` goes before both.

An IPv6 address that leads to an IPv4 one is judged by that one: `::ffff:0:0/96`, and the network's
own translators, which `NAT64_PREFIXES` names (RFC 6052). 6to4, Teredo, and the translator's
well-known prefix where it is not named, are refused as a whole.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext_noop

from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import database
from gateway_project.core.upstream import names

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_CHARS_MAX = 2048
PORTS = (443, 8443)
PUBLIC = gettext_noop(
    "Use https on port 443 or 8443, or have the operators of this gateway allow the network of the "
    "address (WEBHOOK_ALLOWED_NETWORKS)."
)

REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform, for its own machines alone
        "161.26.0.0/16",  # IBM Cloud's services, for its own machines alone
        "166.8.0.0/14",  # likewise
        "169.254.0.0/16",  # link-local, with the clouds' metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # automatic multicast tunnelling
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All that is assigned for the Internet. Outside lie loopback, unspecified, NAT64 (64:ff9b::/96,
64:ff9b:1::/48), discard (100::/64), segment routing (5f00::/16), unique-local, link-local,
site-local and multicast addresses."""
REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "3ffe::/16",  # 6bone, given back (RFC 3701)
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
# Of a host that URL parsers and C libraries take for a number, such as 2130706433 or 0x7f.1 (WHATWG
# URL, "ends in a number").
NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z")
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
# What `urlsplit` would drop or mend in silence: tabs, newlines, backslashes, other alphabets.
HARMLESS = re.compile(r"[!#-\[\]-~]+\Z")


class Refused(Exception):
    """We do not send there; says why, and what would do."""

    def __init__(self, text: str | Sentence) -> None:
        self.sentence = text if isinstance(text, Sentence) else Sentence(text)
        super().__init__(str(self.sentence))

    @property
    def of_field(self) -> str:
        """The same behind the name of a field."""
        sentence = str(self)
        return sentence[:1].lower() + sentence[1:]


class Destination(NamedTuple):
    """A URL taken apart. `host` is a name, or an address without brackets."""

    url: str
    scheme: str
    host: str
    port: int

    @property
    def address(self) -> Address | None:
        """Of a host that is an address itself."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def is_plain(self) -> bool:
        """Whether only allowed networks may be reached in this way: http, or an odd port."""
        return self.scheme != "https" or self.port not in PORTS

    def vet(self, addresses: Iterable[str]) -> None:
        """Raise `Refused` unless each of `addresses` may be dialled for this destination."""
        for text in addresses:
            vet(text, is_plain=self.is_plain)


def vet(text: str, *, is_plain: bool) -> None:
    """Raise `Refused` unless the address `text` may be dialled.

    `is_plain`: over http or to an odd port, which only allowed networks may have.
    """
    address = _unwrapped(text)
    is_closed = address is None or _is_in(address, settings.WEBHOOK_REFUSED_NETWORKS)
    if address is not None and not is_closed and _is_in(address, _allowed()):
        return
    if address is None or is_closed or is_refused(address):
        raise Refused(
            gettext_noop(
                "The address lies in a private or reserved network. Use a public one, or have the "
                "operators of this gateway allow that network (WEBHOOK_ALLOWED_NETWORKS)."
            )
        )
    if is_plain:
        raise Refused(PUBLIC)


def is_refused(address: Address) -> bool:
    """Whether the address is anything but an ordinary one of the Internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return _is_in(address, REFUSED_IPV4)
    if address not in GLOBAL_IPV6 or _is_in(address, REFUSED_IPV6):
        return True
    inner = _isatap(address)
    return inner is not None and _is_in(inner, REFUSED_IPV4)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _unwrapped(text: str) -> Address | None:
    """The address that is really meant; None for what is none, or has a zone (`fe80::1%eth0`)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or _translated(address) or address
    return address


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that the network's translator makes of it (RFC 6052 §2.2)."""
    for prefix in settings.NAT64_PREFIXES:
        if address in prefix:
            rest = address.packed[prefix.prefixlen // 8 :]
            if prefix.prefixlen <= 64:  # then the byte behind the first 64 bits is none of it
                rest = rest[:-8] + rest[-7:]
            return ipaddress.IPv4Address(rest[:4])
    return None


def _isatap(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address at the end of a tunnel within a site (RFC 5214 §6.1)."""
    if address.packed[8:12] in (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe"):
        return ipaddress.IPv4Address(address.packed[12:])
    return None


def _allowed() -> tuple[Network, ...]:
    networks: tuple[Network, ...] = settings.WEBHOOK_ALLOWED_NETWORKS
    return networks


def read(url: str) -> Destination:
    """Take `url` apart; raise `Refused` for what no address behind it could mend.

    An address in the place of the name is vetted here.
    """
    return _read(url, _allowed(), (settings.WEBHOOK_REFUSED_NETWORKS, settings.NAT64_PREFIXES))


@lru_cache(maxsize=1024)  # each delivery reads its URL again; one may be 2 kB
def _read(
    url: str, allowed: tuple[Network, ...], _others: tuple[tuple[Network, ...], ...]
) -> Destination:
    if len(url) > URL_CHARS_MAX or not HARMLESS.match(url):
        text = gettext_noop("Use at most %(most)s plain characters; escape others (%%20).")
        raise Refused(Sentence(text, most=str(URL_CHARS_MAX)))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused(
            gettext_noop("This is not a URL such as https://example.com/hooks.")
        ) from None
    if parts.scheme not in ("http", "https"):
        raise Refused(gettext_noop("Use https."))
    if "@" in parts.netloc:
        raise Refused(
            gettext_noop("Leave out user name and password; deliveries are signed instead.")
        )
    if parts.fragment or url.endswith("#"):
        raise Refused(gettext_noop("Leave out what follows '#': it is never sent."))
    host = _host(parts.netloc, parts.hostname or "")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    elif port == 0:
        raise Refused(PUBLIC)
    found = Destination(url, parts.scheme, host, port)
    if found.address is not None:
        found.vet([host])
    elif found.is_plain and not allowed:
        raise Refused(PUBLIC)
    return found


def _host(netloc: str, host: str) -> str:
    if netloc.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise Refused(gettext_noop("What stands in brackets is not an IPv6 address.")) from None
    if NUMERIC.match(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise Refused(gettext_noop("Write an IPv4 address as four decimal numbers.")) from None
    name = host.lower().removesuffix(".")
    if len(name) > 253 or not all(LABEL.match(label) for label in name.split(".")):
        raise Refused(gettext_noop("The host is not a name (write other alphabets as xn--…)."))
    return name


def check(url: str) -> Destination:
    """Read `url`, look its host up, and vet all that it leads to; raise `Refused`.

    Blocks on the look-up, for `names.SECONDS_MAX` and a little more; not inside a transaction, and
    not in an event loop: `acheck` is for those. A host that does not resolve passes, if it is to be
    spoken to in https on a usual port: each delivery looks again.
    """
    if read(url).address is not None:
        return read(url)
    database.let_go()
    return asyncio.run(acheck(url))


async def acheck(url: str) -> Destination:
    """`check` for an event loop."""
    destination = read(url)
    if destination.address is not None:
        return destination
    try:
        addresses = await names.look_up(destination.host)
    except OSError:
        if destination.is_plain:
            raise Refused(
                gettext_noop("The host is unknown; then use https on port 443 or 8443.")
            ) from None
        return destination
    destination.vet(addresses)
    return destination
