"""The guides as pages: what of a file reaches a reader, tabs, search, and the index."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.tests.shapes import refusal
from portal import guides, markdown

PAGE_BYTES_MAX = 150_000
ENTRIES = guides.index().entries


class TestMarkdown:
    @pytest.mark.parametrize(
        "hostile",
        [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "a <b onclick=alert(1)>b</b>",
            "<!-- note --><script>alert(1)</script>",
            "<!-- a --> <script>alert(1)</script> <!-- b -->",
            "[a](javascript:alert(1))",
            "[a](data:text/html;base64,PHNjcmlwdD4=)",
            "![a](https://elsewhere.example/x.png)",
            "```<script>\n<script>alert(1)</script>\n```",
            '```python "><script>alert(1)</script>\nx\n```\n\n```go\ny\n```',
            "## <script>alert(1)</script>",
            "| a |\n| --: |\n| <script>alert(1)</script> |",
        ],
    )
    def test_nothing_of_a_file_runs(self, hostile):
        html = markdown.render(f"# Title\n\n{hostile}\n").html

        assert not re.search(r"<(script|img|b)\b", html), html
        assert not re.search(r'href="(?!https?:|/|#|mailto:)', html), html
        assert " style=" not in html

    def test_a_comment_is_dropped_and_other_html_is_shown(self):
        html = markdown.render("# T\n\n<!-- not run: why -->\n\nA <kbd>key</kbd>.\n").html

        assert html == "<p>A &lt;kbd&gt;key&lt;/kbd&gt;.</p>\n"

    def test_fences_that_follow_each_other_are_one_example(self):
        page = markdown.render(
            "# T\n\n```sh\ncurl x\n```\n\n<!-- not run: why -->\n```python FastAPI\nx\n```\n\n"
            "Words.\n\n```go\ny\n```\n\n```sh\nls\n```\n"
        )

        examples = re.findall(r"<fieldset.*?</fieldset>", page.html, re.S)
        tabs = [re.findall(r'value="([^"]+)"', example) for example in examples]
        assert tabs == [["curl", "FastAPI"], ["Go", "Shell"]]
        assert all(example.count(" checked") == 1 for example in examples)
        assert len(set(re.findall(r' id="([^"]+)"', page.html))) == 8  # four tabs, four blocks

    def test_a_heading_has_one_anchor_however_often_it_stands_there(self):
        page = markdown.render(
            "# T\n\nFirst.\n\n## What `it` costs\n\nA.\n\n## What it costs\n\nB.\n"
        )

        assert [(s.anchor, s.title, s.text) for s in page.sections] == [
            ("", "T", "First."),
            ("what-it-costs", "What it costs", "A."),
            ("what-it-costs-1", "What it costs", "B."),
        ]
        assert page.title == "T"

    def test_code_is_coloured_and_stays_the_same(self):
        code = 'def f(x):  # "a" & <b>\n    return "é" + x\n'
        html = markdown.highlighted(code, "python")

        plain = re.sub(r"</?span[^>]*>", "", html)
        assert plain == code.replace("&", "&amp;").replace("<", "&lt;").replace(
            ">", "&gt;"
        ).replace('"', "&quot;")
        assert {"c", "s", "k", "f"} <= set(re.findall(r'class="(\w)"', html))
        assert markdown.highlighted("<x>", "no such language") == "&lt;x&gt;"

    def test_columns_to_the_right_need_no_style(self):
        html = markdown.render("# T\n\n| a | b |\n| --- | --: |\n| c | 1 |\n").html

        assert '<td class="number">1</td>' in html
        assert "<td>c</td>" in html


class TestIndex:
    def test_it_names_every_file_once(self):
        files = {path.stem for path in guides.FOLDER.glob("*.md")} - {"README"}

        assert [entry.slug for entry in ENTRIES] == list(dict.fromkeys(e.slug for e in ENTRIES))
        assert {entry.slug for entry in ENTRIES} == files
        assert all(entry.summary for entry in ENTRIES)

    def test_its_words_are_those_of_the_page(self, client, gateway):
        page = client.get("/guides/").content.decode()

        for entry in ENTRIES:
            assert f'href="/guides/{entry.slug}"' in page
            source = guides.source_of(entry.slug)
            assert source.split("\n\n")[1].replace("\n", " ") == entry.summary, entry.slug

    def test_the_bare_address_leads_there(self, client, gateway):
        assert client.get("/guides").headers["Location"] == "/guides/"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.slug)
class TestEachGuide:
    def test_it_is_a_page_with_the_readers_address(self, client, gateway, entry):
        r = client.get(f"/guides/{entry.slug}", headers={"host": "gateway.example:8443"})

        html = r.content.decode()
        assert r.status_code == 200
        assert guides.HERE not in html
        assert guides.THEIRS not in html
        assert "127.0.0.1:8000" not in html
        assert len(r.content) < PAGE_BYTES_MAX
        assert not re.findall(r"<script(?! src=)|<style| style=| on[a-z]+=", html)
        ids = re.findall(r' id="([^"]+)"', html)
        assert len(ids) == len(set(ids))

    def test_its_links_lead_somewhere(self, client, gateway, entry):
        html = client.get(f"/guides/{entry.slug}").content.decode()

        article = html[html.index("<article") : html.index("</article>")]
        for href in set(re.findall(r'href="([^"]+)"', article)):
            if href.startswith("/"):
                path = href.partition("#")[0]
                assert gateway.get(path).status_code in (200, 302), href
            else:
                assert href.startswith(("#", "https://")), href

    def test_it_is_there_as_markdown(self, client, gateway, entry):
        r = client.get(f"/guides/{entry.slug}.md", headers={"host": "gateway.example:8443"})

        assert r.headers["Content-Type"] == "text/markdown; charset=utf-8"
        assert r.content.decode().startswith("# ")
        assert "127.0.0.1:8000" not in r.content.decode()
        assert "<!--" not in r.content.decode()


class TestReading:
    @pytest.mark.parametrize("path", ["/guides/nowhere", "/guides/nowhere.md", "/guides/README"])
    def test_another_name_is_not_found(self, client, gateway, path):
        assert refusal(client.get(path)) == (404, "not_found")

    def test_previous_and_next_go_through_all_of_them(self, client, gateway):
        read, slug = [], ENTRIES[0].slug
        while slug:
            read.append(slug)
            html = client.get(f"/guides/{slug}").content.decode()
            found = re.search(r'rel="next" href="/guides/([\w-]+)"', html)
            slug = found and found[1]

        assert read == [entry.slug for entry in ENTRIES]

    def test_who_is_not_signed_in_costs_no_query(self, client, gateway):
        with CaptureQueriesContext(connection) as queries:
            page = client.get("/guides/quickstart").content.decode()

        assert len(queries) == 0
        assert "gw_live_…" in page

    def test_a_member_sees_the_beginning_of_their_own_key(self, owner, charlie, enter, make_key):
        make_key()
        newest = make_key()
        page = owner.get("/guides/quickstart").content.decode()
        other = enter(charlie).get("/guides/quickstart").content.decode()

        assert f"{newest.row.prefix}…" in page
        assert str(newest) not in page
        assert "gw_live_…" in other

    def test_a_host_with_markup_is_refused_or_escaped(self, client, gateway):
        r = client.get("/guides/quickstart", headers={"host": '"><script>x'})

        assert b"<script>x" not in r.content


class TestSearch:
    def test_every_word_has_to_stand_there(self, client, gateway):
        hits = guides.search("deprecation SUNSET")

        assert hits
        assert hits[0].url.startswith("/guides/versions")
        assert "<mark>" in hits[0].excerpt
        assert guides.search("deprecation zebra") == []

    def test_a_heading_goes_before_the_text(self):
        assert guides.search("thresholds")[0].url == "/guides/policies#thresholds"
        assert guides.search("webhooks")[0].url.startswith("/guides/webhooks")

    @pytest.mark.parametrize("query", ["<script>", "(", "\\", "a" * 5000, "  ", ".*", "&amp;"])
    def test_whatever_is_asked_is_only_words(self, client, gateway, query):
        r = client.get("/guides/", {"q": query})

        assert r.status_code == 200
        assert b"<script>" not in r.content.replace(b"<script src=", b"")

    def test_what_is_not_found_leads_on(self, client, gateway):
        page = client.get("/guides/", {"q": "zebra"}).content.decode()

        assert "Nothing found for “zebra”" in page
        assert 'href="/docs"' in page


def test_language_models_find_their_way(client, gateway):
    r = client.get("/llms.txt", headers={"host": "gateway.example"})

    text = r.content.decode()
    assert r.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert re.match(r"# \w+\n\n> \S", text)
    links = re.findall(r"^- \[[^\]]+\]\(http://gateway\.example(/[^)]+)\): \S", text, re.M)
    assert len(links) == len(ENTRIES) + 1
    assert all(gateway.get(link).status_code == 200 for link in links)
