"""What a stranger relies on: one version, and a licence."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from django.conf import settings
from django.utils.module_loading import import_string

ROOT = Path(__file__).resolve().parents[2]

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


# -- The version and the licence ------------------------------------------------------------------


def test_the_version_stands_once() -> None:
    project = PYPROJECT["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    version = import_string(PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"])
    assert version == settings.VERSION
    assert json.loads((ROOT / "docs/openapi.json").read_text())["info"]["version"] == version
    releases = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == version, "the changelog's newest release is another version"
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in releases[1:])


def test_the_licence_lies_where_the_metadata_says() -> None:
    project = PYPROJECT["project"]
    assert project["license"] == "Apache-2.0"
    texts = [(ROOT / name).read_text() for name in project["license-files"]]
    assert "Apache License\n" in texts[0]
    assert "END OF TERMS AND CONDITIONS" in texts[0]
    for path in re.findall(r"^\* ([\w/-]+):", texts[1], re.MULTILINE):
        assert (ROOT / path / "LICENSE").is_file(), f"NOTICE names {path}, without a licence there"
