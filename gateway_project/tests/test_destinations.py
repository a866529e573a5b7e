"""Where webhooks may be sent: the whole list of what must be refused, and the dialling itself."""

from __future__ import annotations

import asyncio
import ipaddress
from unittest.mock import AsyncMock, patch

import aiohttp
import pytest
from aiohttp import web

from gateway_project.core.upstream import destinations, names
from gateway_project.core.upstream.destinations import Refused
from gateway_project.core.upstream.names import UnknownName
from gateway_project.core.upstream.resolver import GuardedResolver

# Addresses at the beginning, the end or in the middle of each network that must never be dialled.
REFUSED = [
    *("0.0.0.0", "0.255.255.255", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255"),
    *("127.0.0.1", "127.255.255.254", "169.254.0.1", "169.254.169.254", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.2.1", "192.31.196.1"),
    *("192.52.193.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "192.175.48.1"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("168.63.129.16", "::ffff:168.63.129.16"),  # Azure's platform
    *("161.26.0.10", "166.8.0.1", "166.11.255.255"),  # IBM Cloud's services
    *("100.100.100.200", "192.0.0.192", "fd20:ce::254"),  # Alibaba's, Oracle's, Google's metadata
    *("::", "::1", "::7f00:1", "::a9fe:a9fe"),  # unspecified, loopback, "IPv4-compatible"
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "0:0:0:0:0:ffff:7f00:1"),
    *("::ffff:0:127.0.0.1", "::ffff:0:808:808"),  # IPv4-translated
    *("64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::7f00:1"),  # NAT64
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1"),  # 6to4
    *("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),  # Teredo
    *("2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::1"),  # benchmarking, ORCHID
    *("2001:db8::1", "3fff::1", "3fff:fff::1", "2620:4f:8000::1"),  # documentation, AS112
    *("2001:1::1", "2001:3::1", "2001:4:112::1", "2001:30::1", "100:0:0:1::1"),  # IANA's newer ones
    *(
        "3ffe::1",
        "2a00:1450::5efe:10.0.0.1",
        "2a00:1450::200:5efe:169.254.169.254",
    ),  # 6bone, ISATAP
    *("100::1", "5f00::1", "fc00::1", "fd12:3456::1", "fd00:ec2::254"),  # …, unique-local
    *("fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "4000::1", "e000::1"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "100.63.255.255", "100.128.0.1", "126.255.255.255"),
    *("128.0.0.1", "169.253.0.1", "172.15.0.1", "172.32.0.1", "192.0.1.1", "192.167.0.1"),
    *("198.17.0.1", "198.20.0.1", "223.255.255.255", "::ffff:8.8.8.8"),
    *("168.63.129.15", "168.63.129.17", "2a00:1450::5efe:8.8.8.8"),
    *("2001:4860:4860::8888", "2606:4700::1111", "2a00:1450::1", "2400:cb00::1", "2001:200::1"),
]
NOT_A_DESTINATION = [
    "",
    "example.com",
    "//example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "https://",
    "https:///path",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com@127.0.0.1/",
    "https://127.0.0.1\\@example.com/",
    "https://example.com\\.evil/",
    "https://example.com/\n",
    "https://exa\tmple.com/",
    " https://example.com/",
    "https://example.com/a b",
    "https://example.com/#fragment",
    "https://example.com/#",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:-1/",
    "https://example.com:https/",
    "https://example..com/",
    "https://.example.com/",
    "https://-example.com/",
    "https://" + "a" * 64 + ".com/",
    "https://" + "a." * 127 + "com/",
    "https://example.com/" + "a" * 2048,
    "https://ex%61mple.com/",
    "https://%31%32%37.0.0.1/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://127\u30020\u30020\u30021/",
    "https://bücher.example/",
    "https://[::1/",
    "https://[nonsense]/",
    "https://[127.0.0.1]/",
    "https://[v1.fe80::a]/",
    "https://[::1%25lo]/",
    # Spellings of 127.0.0.1 and 169.254.169.254 that C libraries understand.
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0X7F000001/",
    "https://017700000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.01/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.1./",
    "https://0/",
    "https://0x/",
    "https://example.0x7f/",
    "https://2852039166/",
    "https://0xa9.0xfe.0xa9.0xfe/",
    "https://0251.0376.0251.0376/",
    "https://169.254.43518/",
    "https://1.2.3.4.5/",
    "https://256.0.0.1/",
    # The Internet, but not as it should be spoken to.
    "http://example.com/",
    "http://8.8.8.8/",
    "https://example.com:80/",
    "https://example.com:22/",
    "https://8.8.8.8:8080/",
    "https://[2606:4700::1111]:25/",
]


def in_url(address):
    return f"https://[{address}]/hook" if ":" in address else f"https://{address}/hook"


def resolving(*addresses):
    """The resolver as it would be if it said `addresses` for everything; some no server could."""
    return patch.object(names, "look_up", AsyncMock(return_value=list(addresses)))


def unknown():
    return patch.object(names, "look_up", AsyncMock(side_effect=UnknownName))


@pytest.fixture
def allow(settings):
    def allow(*networks):
        settings.WEBHOOK_ALLOWED_NETWORKS = tuple(map(ipaddress.ip_network, networks))

    allow()
    return allow


@pytest.mark.usefixtures("allow")
class TestRefused:
    @pytest.mark.parametrize("address", REFUSED)
    def test_an_address_in_the_url(self, address):
        with pytest.raises(Refused):
            destinations.check(in_url(address))

    @pytest.mark.parametrize("address", REFUSED)
    def test_a_name_that_leads_there(self, address):
        with resolving(address), pytest.raises(Refused):
            destinations.check("https://example.com/hook")

    @pytest.mark.parametrize("address", REFUSED)
    def test_a_name_that_leads_there_among_others(self, address):
        with resolving("8.8.8.8", address), pytest.raises(Refused):
            destinations.check("https://example.com/hook")

    @pytest.mark.parametrize("address", REFUSED)
    def test_a_name_that_leads_there_only_when_it_is_dialled(self, address):
        with resolving(address), pytest.raises(Refused):
            asyncio.run(GuardedResolver(is_plain=False).resolve("example.com", 443))

    @pytest.mark.parametrize("url", NOT_A_DESTINATION)
    def test_what_is_no_destination_whatever_it_resolves_to(self, url):
        with resolving("8.8.8.8"), pytest.raises(Refused) as refused:
            destinations.check(url)

        assert str(refused.value)

    def test_the_machine_itself_by_name(self):
        with pytest.raises(Refused, match="private or reserved"):
            destinations.check("https://localhost/hook")

    def test_no_sentence_says_what_a_name_resolves_to(self):
        with resolving("10.20.30.40"), pytest.raises(Refused) as refused:
            destinations.check("https://internal.example/hook")

        assert "10.20" not in str(refused.value)


@pytest.mark.usefixtures("allow")
class TestAccepted:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_a_public_address(self, address):
        assert destinations.check(in_url(address)).port == 443
        with resolving(address):
            assert destinations.check("https://example.com/hook").host == "example.com"

    @pytest.mark.parametrize(
        ("url", "host", "port"),
        [
            ("https://example.com", "example.com", 443),
            ("https://EXAMPLE.com./a?b=c&d=%20", "example.com", 443),
            ("https://example.com:8443/", "example.com", 8443),
            ("https://example.com:443/", "example.com", 443),
            ("https://hooks_a.xn--bcher-kva.example/x", "hooks_a.xn--bcher-kva.example", 443),
            ("https://1password.example/", "1password.example", 443),
            ("https://[2606:4700:0::1111]/", "2606:4700::1111", 443),
        ],
    )
    def test_it_is_taken_apart(self, url, host, port):
        with resolving("8.8.8.8"):
            found = destinations.check(url)

        assert (found.url, found.scheme, found.host, found.port) == (url, "https", host, port)

    def test_a_host_that_does_not_resolve_yet(self):
        with unknown():
            assert destinations.check("https://later.example/").host == "later.example"


class TestAllowedNetworks:
    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/",
            "http://127.0.0.1:9000/hook",
            "https://127.0.0.1:9000/hook",
            "http://[::ffff:127.0.0.1]:9000/",
            "http://localhost:9000/",
        ],
    )
    def test_they_may_use_http_and_any_port(self, allow, url):
        allow("127.0.0.0/8")

        with resolving("127.0.0.1"):
            assert destinations.check(url).url == url

    @pytest.mark.parametrize(
        "url",
        ["http://10.0.0.1/", "https://10.0.0.1/", "https://[::1]/", "https://2130706433/"],
    )
    def test_they_open_nothing_else(self, allow, url):
        allow("127.0.0.0/8", "192.168.7.0/24")

        with pytest.raises(Refused):
            destinations.check(url)

    def test_http_is_for_them_alone(self, allow):
        allow("127.0.0.0/8")

        with resolving("8.8.8.8"), pytest.raises(Refused, match="https"):
            destinations.check("http://example.com/")
        with resolving("127.0.0.1", "8.8.8.8"), pytest.raises(Refused, match="https"):
            destinations.check("http://example.com/")
        with unknown(), pytest.raises(Refused, match="https"):
            destinations.check("http://example.com/")

    def test_an_ipv6_network(self, allow):
        allow("fd00:1::/32")

        assert destinations.check("http://[fd00:1::5]:8080/").port == 8080
        with pytest.raises(Refused):
            destinations.check("http://[fd00:2::5]:8080/")


class TestRefusedNetworks:
    """`WEBHOOK_REFUSED_NETWORKS`: what the operators know and no registry does."""

    @pytest.fixture(autouse=True)
    def refuse(self, settings, allow):
        allow("10.0.0.0/8")
        networks = map(ipaddress.ip_network, ("8.8.0.0/16", "10.1.0.0/16", "2a00:1450::/32"))
        settings.WEBHOOK_REFUSED_NETWORKS = tuple(networks)

    @pytest.mark.parametrize(
        "url",
        [
            "https://8.8.8.8/",
            "https://[::ffff:8.8.8.8]/",
            "https://[2a00:1450::1]/",
            "https://10.1.0.1/",  # although it is allowed as well
        ],
    )
    def test_they_go_before_all(self, url):
        with pytest.raises(Refused, match="private or reserved"):
            destinations.check(url)

    def test_a_name_that_leads_there(self):
        with resolving("8.8.8.8"), pytest.raises(Refused):
            destinations.check("https://example.com/")

    def test_the_others_are_as_they_were(self):
        assert destinations.check("https://8.9.8.8/").port == 443
        assert destinations.check("http://10.2.0.1/").port == 80


# The prefixes of RFC 6052 §2.4.
NAT64 = {
    32: "2001:db8::/32",
    40: "2001:db8:100::/40",
    48: "2001:db8:122::/48",
    56: "2001:db8:122:300::/56",
    64: "2001:db8:122:344::/64",
    96: "2001:db8:122:344::/96",
}


def translated(length, address):
    """The prefix, and `address` behind it."""
    prefix = ipaddress.ip_network(NAT64[length])
    after = ipaddress.ip_address(address).packed
    start = length // 8
    packed = bytearray(prefix.network_address.packed)
    for byte in after:
        if start == 8:
            start += 1
        packed[start] = byte
        start += 1
    return prefix, str(ipaddress.IPv6Address(bytes(packed)))


class TestTranslators:
    """`NAT64_PREFIXES`: an address behind one is the IPv4 address in it."""

    @pytest.mark.parametrize(
        ("length", "written"),
        [
            (32, "2001:db8:c000:221::"),
            (40, "2001:db8:1c0:2:21::"),
            (48, "2001:db8:122:c000:2:2100::"),
            (56, "2001:db8:122:3c0:0:221::"),
            (64, "2001:db8:122:344:c0:2:2100::"),
            (96, "2001:db8:122:344::c000:221"),
        ],
    )
    def test_it_is_read_as_the_standard_writes_it(self, settings, allow, length, written):
        prefix, address = translated(length, "192.0.2.33")
        settings.NAT64_PREFIXES = (prefix,)
        allow("192.0.2.33/32")

        assert ipaddress.ip_address(address) == ipaddress.ip_address(written)
        destinations.vet(address, is_plain=True)

    @pytest.mark.parametrize("length", NAT64)
    @pytest.mark.parametrize("inner", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "168.63.129.16"])
    def test_one_of_our_network_is_refused(self, settings, allow, length, inner):
        prefix, address = translated(length, inner)
        settings.NAT64_PREFIXES = (prefix,)

        with pytest.raises(Refused):
            destinations.check(in_url(address))
        with resolving("8.8.8.8", address), pytest.raises(Refused):
            destinations.check("https://example.com/")

    @pytest.mark.parametrize("length", NAT64)
    def test_a_public_one_is_reached(self, settings, allow, length):
        prefix, address = translated(length, "8.8.8.8")
        settings.NAT64_PREFIXES = (prefix,)

        assert destinations.check(in_url(address)).port == 443

    def test_the_well_known_prefix_too_where_it_is_named(self, settings, allow):
        settings.NAT64_PREFIXES = (ipaddress.ip_network("64:ff9b::/96"),)

        assert destinations.check("https://[64:ff9b::808:808]/").port == 443
        with pytest.raises(Refused):
            destinations.check("https://[64:ff9b::a9fe:a9fe]/")


class TestDialling:
    """With aiohttp's real connector and a real server."""

    async def fetch(self, host, *, is_plain):
        async def hello(request):
            return web.Response(text=request.host)

        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        connector = aiohttp.TCPConnector(resolver=GuardedResolver(is_plain=is_plain))
        try:
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(f"http://{host}:{port}/") as answer,
            ):
                return await answer.text() == f"{host}:{port}"
        finally:
            await runner.cleanup()

    def test_what_was_vetted_is_dialled(self, allow):
        """The name says one thing once: a second look-up would be answered differently."""
        allow("127.0.0.0/8")

        async def run():
            return await self.fetch("rebinding.example", is_plain=True)

        look_up = AsyncMock(side_effect=[["127.0.0.1"]])
        with patch.object(names, "look_up", look_up):
            assert asyncio.run(run())
        assert look_up.call_count == 1

    def test_what_is_refused_is_never_dialled(self, allow):
        allow()
        with (
            resolving("127.0.0.1"),
            patch.object(asyncio.BaseEventLoop, "sock_connect") as connect,
            pytest.raises(Refused),
        ):
            asyncio.run(self.fetch("rebinding.example", is_plain=False))

        connect.assert_not_called()

    def test_plain_http_reaches_allowed_networks_alone(self, allow):
        allow("127.0.0.0/8")

        with resolving("8.8.8.8"), pytest.raises(Refused, match="https"):
            asyncio.run(GuardedResolver(is_plain=True).resolve("example.com", 80))
