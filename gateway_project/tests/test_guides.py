"""The guides are true: every snippet runs in its language, and every page leads somewhere.

Shell and Python run here. Go and TypeScript run in `make sdk-test`, which names them in
`SDK_LANGUAGES`; here only Go's syntax is looked at, and the types of TypeScript where its library
was built. Those of a language are one process. A block
marked `<!-- file: … -->` is that file of the examples, which `test_examples.py` starts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
import yaml

from accounts.models import SCOPES
from gateway_project.core.api.deprecation import NOTICE
from gateway_project.tests.contract import DOCUMENT
from gateway_project.tests.documents import EDGE, FENCE, blocks_of, parsed, reader_at
from gateway_project.tests.litellm_fakes import Model
from gateway_project.tests.served import ROOT
from portal import guides
from robin.permissions import PERMISSIONS, Role

FOLDER = ROOT / "docs" / "guides"
PAGES = sorted(FOLDER.glob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = ("sh", "python", "ts", "go")
ELSEWHERE = ("nginx", "yaml")  # the same as in a page that another test tries
LANGUAGES = (*RUN, *ELSEWHERE, "json")
ASKED = os.environ.get("SDK_LANGUAGES", "python").split(",")
SDKS = ROOT / "sdks"
TSC = SDKS / "typescript/node_modules/typescript/bin/tsc"
STRICT = (
    *("--strict", "--erasableSyntaxOnly", "--module", "nodenext", "--target", "es2022"),
    *("--lib", "es2022,dom,dom.iterable", "--newLine", "lf"),
)
# What the snippets need of Node; its types are a package of their own.
NODE = """
declare const process: { env: Record<string, string | undefined> };
declare module "node:crypto" {
  export function createHash(name: string): {
    update(text: string): { digest(encoding: "hex"): string };
  };
}
"""
LINE_CHARS_MAX = 120
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_block = pytest.mark.parametrize("block", BLOCKS, ids=str)


def of(*languages):
    return [b for b in BLOCKS if b.is_run and b.language in languages]


# -- Each block -----------------------------------------------------------------------------------


@each_block
def test_a_block_is_run_or_says_why_not(block):
    if block.note.startswith("file:"):
        file = ROOT / block.note.removeprefix("file:").strip()
        assert file.is_relative_to(ROOT / "examples")
        assert block.text == file.read_text(), f"{block} shows another text than {file}"
    elif block.is_run:
        assert block.language in LANGUAGES, "name its language, or say `<!-- not run: why -->`"
    else:
        assert len(block.note.removeprefix("not run:").split()) >= 2, "say why"


@by_name
def test_every_fence_is_seen(page):
    assert len(EDGE.findall(page.read_text())) == 2 * len(blocks_of(page))


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_json(block):
    parsed(block)


@by_name
def test_what_is_shown_in_one_library_is_shown_in_python_and_typescript(page):
    """Go's has a part of the calls; where it can, it is there too."""
    labels = [
        (re.findall(r'value="([^"]+)"', example))
        for example in re.findall(
            r'<fieldset class="example">.*?<div', guides.page_of(page.stem).html
        )
    ]
    for shown in labels:
        if "curl" in shown and page.stem != "robin-ui":  # the libraries are of the detection API
            assert shown[1:3] == ["Python", "TypeScript"], shown


def test_the_headers_that_are_shown_are_those_of_a_first_call(gateway, engine, make_key):
    [block] = [b for b in blocks_of(FOLDER / "limits.md") if b.language == "http"]
    key = make_key(rate_limit_per_minute=60, rate_limit_per_day=10_000)
    answer = gateway.detect("Good morning.", key=key)

    for line in block.text.splitlines():
        name, _, shown = line.partition(": ")
        real = answer.headers[name]
        # Of the day, when it ends depends on when one looks.
        parts = [re.sub(r"t=43200", "t=", part).strip() for part in shown.split(",")]
        assert [part for part in parts if part not in real and part != "…"] == [], (name, real)


def test_the_guide_of_robin_ui_says_what_each_role_sees():
    rows = dict(re.findall(r"^\| ([A-Z]+) \| (.+) \|$", (FOLDER / "robin-ui.md").read_text(), re.M))
    assert {f"ROLE_{name}" for name in rows} == {*PERMISSIONS}
    before: set[str] = set()
    for role in (Role.READONLY, Role.USER):
        sees = {p.removeprefix("VIEW_").lower() for p in PERMISSIONS[role]}
        listed = {*re.findall(r"\w+", rows[role.removeprefix("ROLE_")])}
        assert listed - {"the", "same", "and", "see"} == sees - before
        before = sees


@pytest.mark.parametrize("page", ["guides/errors", "guides/policies", "policies"])
def test_pages_say_that_failing_open_allows_nothing(page):
    """`test_failing_open_is_for_keys_that_allow_it` has the answer."""
    text = (ROOT / f"docs/{page}.md").read_text()

    assert re.search(r"`fail_open`[^|]{1,120}`(?:decision: )?review`", text)


# -- All of them, run -----------------------------------------------------------------------------


@pytest.fixture
def model():
    with Model() as server:
        yield server


@pytest.fixture
def reader(serve, own_redis, make_key, model, tmp_path):
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("needs bash and curl")
    served = serve(
        WORKERS="1", EMBEDDED_WORKER="true", REDIS_URL=own_redis.url, ALLOWED_HOSTS="127.0.0.1"
    )
    limits = {"rate_limit_per_minute": 6000, "rate_limit_per_day": 100_000}
    key = make_key(name="reader", scopes=SCOPES[:4], **limits)
    admin = make_key(name="admin", scopes=SCOPES, **limits)
    return reader_at(
        served,
        tmp_path / "checkout",
        key,
        GATEWAY_URL=served.url,
        GATEWAY_API_KEY=key,
        GATEWAY_ADMIN_KEY=admin,
        MODEL_URL=f"{model.url}/v1",
        MODEL_KEY="sk-test",
        PYTHONPATH=str(SDKS / "python" / "src"),
    )


@pytest.mark.slow
@pytest.mark.served
def test_what_the_guides_say_to_type_works(reader, model):
    wrong = reader.python(of("python"))
    for page in sorted({b.page for b in of("sh")}):
        try:
            reader.follow(page)
        except AssertionError as exc:
            wrong.append(str(exc))

    assert not wrong, "\n\n".join(wrong)
    # Of the chatbot's two messages one is an attack, and never came to the model.
    assert [asked["messages"][-1]["content"] for asked in model.asked] == [
        "When do you open on Mondays?"
    ]


@pytest.mark.served
@pytest.mark.parametrize("language", [name for name in ("typescript", "go") if name in ASKED])
def test_snippets_run_in(language, reader, model):
    ran = go(reader, of("go")) if language == "go" else typescript(reader, of("ts"))

    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    assert len(model.asked) == 1


def typescript(reader, blocks):
    """All snippets as modules, one after the other; the package is the one that was built."""
    folder = reader.folder / "snippets"
    done = compiled(folder, blocks, reader.adapted)
    assert done.returncode == 0, done.stdout
    lines = []
    for n, block in enumerate(blocks):
        lines += [f"console.error({str(block)!r});", f'await import("./s{n}.mjs");']
    return reader.run("node", "--input-type=module", "-", text="\n".join(lines), folder=folder)


def compiled(folder, blocks, adapted=str):
    """As a strict project would, beside the package."""
    (folder / "node_modules").mkdir(parents=True)
    (folder / "node_modules" / "gateway-guard").symlink_to(SDKS / "typescript")
    (folder / "node.d.ts").write_text(NODE)
    for n, block in enumerate(blocks):
        (folder / f"s{n}.mts").write_text(f"// {block}\n{adapted(block.text)}")
    files = ("node.d.ts", *(f"s{n}.mts" for n in range(len(blocks))))
    return subprocess.run(
        ["node", str(TSC), *STRICT, *files], cwd=folder, capture_output=True, text=True, check=False
    )


def go(reader, blocks):
    """Each snippet as a package whose `main` is called."""
    folder = reader.folder / "snippets"
    imports, calls = ['"fmt"', '"os"'], []
    for n, block in enumerate(blocks):
        (folder / f"s{n}").mkdir(parents=True)
        text = reader.adapted(block.text).replace("package main", f"package s{n}", 1)
        text = text.replace("func main()", "func Main()", 1)
        (folder / f"s{n}" / "s.go").write_text(text)
        imports.append(f'"snippets/s{n}"')
        calls += [f'fmt.Fprintln(os.Stderr, "{block}")', f"s{n}.Main()"]
    main = f"package main\nimport (\n{chr(10).join(imports)}\n)\nfunc main() {{\n"
    (folder / "main.go").write_text(main + "\n".join(calls) + "\n}\n")
    (folder / "go.mod").write_text(
        "module snippets\n\ngo 1.22\n\nrequire gateway.example/guard v0.1.0\n\n"
        f"replace gateway.example/guard => {SDKS / 'go'}\n"
    )
    return reader.run("go", "run", ".", text="", folder=folder, seconds=300)


def test_go_is_go_as_its_formatter_has_it(tmp_path):
    if shutil.which("gofmt") is None:
        pytest.skip("needs Go, whose gofmt looks at the snippets")
    for n, block in enumerate(of("go")):
        (tmp_path / f"s{n}.go").write_text(block.text)
    done = subprocess.run(
        ["gofmt", "-l", "-e", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_typescript_passes_its_strict_compiler(tmp_path):
    if not (shutil.which("node") and TSC.exists() and (SDKS / "typescript/dist").exists()):
        pytest.skip("needs Node, and sdks/typescript as `make sdk-test` builds it")
    readme = blocks_of(SDKS / "typescript/README.md")
    done = compiled(tmp_path / "s", of("ts") + [b for b in readme if b.language == "ts"])

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_python(block):
    compile(block.text, str(block), "exec")


def test_configurations_are_those_that_are_tried_elsewhere():
    config, tried = (
        yaml.safe_load(next(b.text for b in blocks_of(page) if b.language == "yaml"))
        for page in (FOLDER / "litellm.md", ROOT / "docs/litellm.md")
    )
    tried["guardrails"][0]["litellm_params"]["api_key"] = "os.environ/GATEWAY_API_KEY"
    assert config == tried
    [nginx] = [b.text for b in blocks_of(FOLDER / "robin-ui.md") if b.language == "nginx"]
    served = (ROOT / "deploy/robin-ui.conf").read_text().splitlines()
    assert {line.strip() for line in nginx.splitlines()} <= {line.strip() for line in served}


# -- Pages ----------------------------------------------------------------------------------------


@by_name
def test_prose_can_be_read_in_an_editor(page):
    wide = [
        line
        for line in FENCE.sub("", page.read_text()).splitlines()
        if len(line) > LINE_CHARS_MAX and not line.startswith(("|", "- ["))
    ]

    assert not wide


def test_links_between_guides_lead_to_a_heading():
    anchors = {
        page.stem: {section.anchor for section in guides.page_of(page.stem).sections}
        for page in PAGES
    }
    for page in PAGES:
        for name, anchor in re.findall(r"\]\(([\w-]*)(?:\.md)?#([\w-]+)\)", page.read_text()):
            assert anchor in anchors[name or page.stem], f"{page.name}: {name}#{anchor}"
        for name in re.findall(r"\]\(([\w-]+\.md)\)", page.read_text()):
            assert (FOLDER / name).exists(), f"{page.name}: {name}"


def test_the_guide_on_versions_names_what_is_deprecated():
    text = (FOLDER / "versions.md").read_text()
    operations = {
        f"{method.upper()} {path}"
        for path, methods in DOCUMENT["paths"].items()
        for method, about in methods.items()
        if isinstance(about, dict) and about.get("deprecated")
    }
    table = text[text.index("## Deprecated now") : text.index("## Notice it")]

    assert {name for name in operations if f"`{name}`" not in table} == set()
    assert ("Nothing." in table) == (not operations and '"deprecated":' not in str(DOCUMENT))
    assert f"**{NOTICE.days} days**" in text
