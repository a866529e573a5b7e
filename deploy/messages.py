"""The catalogues under `locale/`: `python -m deploy.messages` writes them (`make messages`).

Sentences are taken from the templates, from calls of `gettext` in Python and in our scripts, and
from the titles and details of `core/errors.py`, which pages show and programs get as they are. What
is new stands in the catalogue without a translation, which a test refuses; what is gone is gone.
The compiled form is written as well, so that nothing has to be installed where the gateway runs,
and what scripts need of it (`static/portal/translations.de.js`).

A line of a catalogue names files and no line numbers, so that two branches seldom meet in one.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "locale"
SCRIPTS = ROOT / "static/portal"
APPS = ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
ERRORS = "gateway_project/core/errors.py"
KEYWORDS = {
    **DEFAULT_KEYWORDS,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext_lazy": (1, 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext_lazy": ((1, "c"), 2, 3),
}
WIDTH = 100


class Found(NamedTuple):
    """A sentence of the sources. `text` is a pair where it has a plural."""

    file: str
    text: str | tuple[str, ...]
    context: str | None
    comments: tuple[str, ...] = ()


def catalogues() -> Iterator[Path]:
    """The `.po` of each language."""
    yield from sorted(LOCALE.glob("*/LC_MESSAGES/django.po"))


def sentences() -> Iterator[Found]:
    """Everything that is to be translated, file by file."""
    for path in sorted([*ROOT.glob("templates/**/*.html"), *ROOT.glob("templates/**/*.txt")]):
        yield from in_template(path)
    for app in APPS:
        for path in sorted((ROOT / app).rglob("*.py")):
            if not {"tests", "migrations"} & set(path.parts):
                yield from in_python(path)
    yield from in_errors(ROOT / ERRORS)
    for path in sorted(SCRIPTS.glob("*.js")):
        if not path.name.startswith("translations."):
            yield from _in_code(path.read_text(encoding="utf-8"), _name(path), "javascript")


def in_template(path: Path) -> Iterator[Found]:
    name = _name(path)
    code = templatize(path.read_text(encoding="utf-8"), origin=name)
    # What is no call of `gettext` stands there as blanked words, which no indent has to hold.
    yield from _in_code("\n".join(line.strip() for line in code.split("\n")), name)


def in_python(path: Path) -> Iterator[Found]:
    code = path.read_text(encoding="utf-8")
    if "gettext" in code:  # whatever it is called there, it is imported
        yield from _in_code(code, _name(path))


def in_errors(path: Path) -> Iterator[Found]:
    """Titles and details of the refusals, which are class attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                target = part.targets[0] if isinstance(part, ast.Assign) else None
                target = part.target if isinstance(part, ast.AnnAssign) else target
                value = part.value if isinstance(part, ast.Assign | ast.AnnAssign) else None
                is_shown = isinstance(target, ast.Name) and target.id in ("title", "default_detail")
                if is_shown and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield Found(_name(path), value.value, None)


def _in_code(code: str, name: str, language: str = "python") -> Iterator[Found]:
    source = io.BytesIO(code.encode())
    options = {"encoding": "utf-8", "parse_template_string": "true"}
    found = extract(language, source, KEYWORDS, comment_tags=("Translators:",), options=options)
    for _, text, comments, context in found:
        yield Found(name, text if isinstance(text, str) else tuple(text), context, tuple(comments))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def template() -> Catalog:
    """The sentences without a language."""
    catalogue = Catalog()
    for found in sentences():
        catalogue.add(
            found.text,
            locations=[(found.file, 0)],
            auto_comments=found.comments,
            context=found.context,
        )
    return catalogue


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parts[-3])


def written(catalogue: Catalog) -> bytes:
    """The catalogue as its `.po`, without a time that would differ with each run."""
    buffer = io.BytesIO()
    write_po(
        buffer,
        catalogue,
        width=WIDTH,
        sort_by_file=True,
        include_lineno=False,
        ignore_obsolete=True,
        omit_header=True,
    )
    head = [f'"{line}\\n"' for line in _head(catalogue)]
    comment = catalogue.header_comment.strip("\n")
    lines = [comment, 'msgid ""', 'msgstr ""', *head, "", ""]
    return "\n".join(lines).encode() + buffer.getvalue()


def _head(catalogue: Catalog) -> list[str]:
    return [
        f"Language: {catalogue.locale_identifier}",
        f"Plural-Forms: {catalogue.plural_forms}",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
    ]


class _Headed:
    """A catalogue with the head of its `.po`, for `write_mo`: Babel's own has the time in it."""

    charset = "utf-8"

    def __init__(self, catalogue: Catalog) -> None:
        self._catalogue = catalogue

    def __iter__(self) -> Iterator[Message]:
        yield Message("", "".join(f"{line}\n" for line in _head(self._catalogue)))
        yield from (message for message in self._catalogue if message.id)


def compiled(catalogue: Catalog) -> bytes:
    buffer = io.BytesIO()
    write_mo(buffer, cast(Catalog, _Headed(catalogue)))
    return buffer.getvalue()


def translations(catalogue: Catalog) -> bytes:
    """What our scripts say, as a script that stands before them; of a plural both forms."""
    found = {
        message.id if isinstance(message.id, str) else message.id[0]: message.string
        for message in catalogue
        if message.id and any(file.startswith("static/") for file, _ in message.locations)
    }
    listed = json.dumps(found, ensure_ascii=False, indent=0, sort_keys=True)
    return f"// Made of locale/: make messages.\nwindow.translations = {listed};\n".encode()


def translations_file(catalogue: Catalog) -> Path:
    return SCRIPTS / f"translations.{catalogue.locale_identifier}.js"


def update(path: Path) -> Catalog:
    """The catalogue with the sentences of today; similar ones are not guessed at."""
    catalogue = read(path)
    catalogue.update(template(), no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    return catalogue


def main() -> None:
    for path in catalogues():
        catalogue = update(path)
        path.write_bytes(written(catalogue))
        catalogue = read(path)
        path.with_suffix(".mo").write_bytes(compiled(catalogue))
        translations_file(catalogue).write_bytes(translations(catalogue))
        bare = [m.id for m in catalogue if m.id and not all(_forms(m.string))]
        print(f"{path.relative_to(ROOT)}: {len(catalogue)} sentences, {len(bare)} to translate")
        for text in bare:
            print(f"  {text}")


def _forms(string: Any) -> tuple[str, ...]:
    return tuple(string or ("",)) if not isinstance(string, str) else (string,)


if __name__ == "__main__":
    main()
