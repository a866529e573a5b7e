"""A mail for people to look at: whatever it holds, it does no harm, and is shown."""

from __future__ import annotations

import re

import pytest

from robin.storage import message

PLAIN = b"From: Ann <ann@north.example>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\nHello\r\n"
MIXED = b"\r\n".join(
    [
        b"From: ann@north.example",
        b"To: bob@north.example",
        b"Subject: Both",
        b"MIME-Version: 1.0",
        b'Content-Type: multipart/mixed; boundary="x"',
        b"",
        b"--x",
        b'Content-Type: multipart/alternative; boundary="y"',
        b"",
        b"--y",
        b"Content-Type: text/plain; charset=iso-8859-1",
        b"Content-Transfer-Encoding: quoted-printable",
        b"",
        b"Sch=F6n",
        b"--y",
        b"Content-Type: text/html",
        b"",
        b"<p>Sch&ouml;n</p>",
        b"--y--",
        b"--x",
        b'Content-Type: application/pdf; name="a/../b.pdf"',
        b'Content-Disposition: attachment; filename="a/../b.pdf"',
        b"Content-Transfer-Encoding: base64",
        b"",
        b"AAECAw==",
        b"--x",
        b"Content-Type: message/rfc822",
        b"",
        PLAIN,
        b"--x--",
        b"",
    ]
)


def test_headers_text_html_and_attachments():
    found = message.read(MIXED)

    assert found.main()[:3] == [
        ("From", "ann@north.example"),
        ("To", "bob@north.example"),
        ("Subject", "Both"),
    ]
    assert found.text == "Schön"
    assert found.html == "<p>Sch&ouml;n</p>"
    assert [(one.name, one.media_type, one.size) for one in found.attachments] == [
        ("a/../b.pdf", "application/pdf", 4),
        ("a mail", "message/rfc822", 0),
    ]


def test_a_header_is_decoded_and_nothing_in_it_turns_the_page_around():
    found = message.read(PLAIN.replace(b"Ann <", "\u202e<".encode() + b"\x0b"))

    assert ("Subject", "Grüße") in found.headers
    assert all(value.isprintable() for _, value in found.headers)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"not a mail at all",
        b"\xff\xfe" + "Subject: x\r\n\r\nhi".encode("utf-16-le"),
        b"Subject: =?x-none?b?////?=\r\nContent-Type: text/plain; charset=\xff\r\n\r\n\xe9",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: uuencode\r\n\r\nbegin\r\n\xff",
        b"".join(
            b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
            for n in range(2000)
        ),
        b"A: b\r\n" * 10_000 + b"\r\nx",
    ],
    ids=["empty", "nul", "none", "utf-16", "charset", "encoding", "parts in parts", "headers"],
)
def test_what_is_no_mail_is_shown_as_far_as_it_goes(content):
    found = message.read(content)

    assert len(found.headers) <= message.HEADERS_MAX
    assert all(line.isprintable() for line in found.text.split("\n"))


HOSTILE = [
    "<script>alert(1)</script>x",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>x",
    "<scr<script>ipt>alert(1)</scr</script>ipt>x",
    '<img src=https://evil.example/pixel.gif alt="a">x',
    "<img src='cid:part1' onerror=alert(1)>x",
    "<img src=data:image/svg+xml;base64,PHN2Zz4=>x",
    '<a href="https://evil.example/?me" ping="//evil.example">x</a>',
    "<a href=javascript:alert(1)>x</a>",
    '<p style="background:url(//evil.example/x)">x</p>',
    '<p style="background:u\\72l(//evil.example/x)">x</p>',
    '<p style="width:expression(alert(1))">x</p>',
    "<p style=\"background-image:image-set('//evil.example/x')\">x</p>",
    "<style>@import '//evil.example/x.css';</style>x",
    "<link rel=stylesheet href=//evil.example/x.css>x",
    "<link rel=dns-prefetch href=//evil.example>x",
    '<meta http-equiv=refresh content="0;url=//evil.example">x',
    "<base href=//evil.example/>x",
    "<iframe src=//evil.example>inside</iframe>x",
    "<form action=//evil.example><input name=a><button>go</button></form>x",
    "<svg><a xlink:href=//evil.example><text>in</text></a></svg>x",
    "<math><mtext><img src=//evil.example></mtext></math>x",
    "<object data=//evil.example></object><embed src=//evil.example>x",
    "<video poster=//evil.example src=//evil.example></video><audio src=//evil.example>x",
    "<table background=//evil.example><tr><td background=//evil.example>x</td></tr></table>",
    "<body onload=alert(1) background=//evil.example>x",
    '<p title="&quot;><script>alert(1)</script>">x</p>',
    "<!--><script>alert(1)</script>-->x",
    '<noscript><p title="</noscript><img src=//evil.example>">x</noscript>x',
    '<img alt="&quot;><script>alert(1)</script>" src=//evil.example>x',
]


@pytest.mark.hostile
@pytest.mark.parametrize("html", HOSTILE)
def test_nothing_of_it_runs_asks_or_leads_anywhere(html):
    found = message.harmless(html)

    tags = re.findall(r"<(\w+)((?:\s[^<>]*)?)>", found)
    assert {tag for tag, _ in tags} <= message.TAGS
    for _, attributes in tags:
        names = set(re.findall(r'\s([\w-]+)="', attributes))
        assert names <= message.ATTRIBUTES | {"title", "alt", "src"}
        # The address of a link may be read, in its title; nothing has one that is followed.
        assert "evil" not in re.sub(r'\s(title|alt)="[^"]*"', "", attributes)
    assert "x" in found


def test_what_is_harmless_stays():
    html = (
        '<h1 align="center">A</h1><table border="1"><tr><td colspan="2" bgcolor="#fff">B &amp; C'
        '</td></tr></table><p style="color: red; font-size: 12px">D<br>E</p>'
        '<img alt="dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" width="1">'
    )

    assert message.harmless(html) == html


def test_what_is_left_open_is_closed_and_deep_ones_cost_little():
    assert message.harmless("<b>a<i>b") == "<b>a<i>b</i></b>"
    assert message.harmless("</p>a</b>") == "a"
    deep = message.harmless("<b>" * 200_000 + "</i>" * 200_000)
    assert deep.count("<b>") == message.OPEN_MAX
