"""What every page of the portal keeps to, as far as its HTML tells."""

from __future__ import annotations

import re
from collections import Counter

from portal.tests import furnished
from portal.tests.furnished import furnish


def test_no_id_is_on_a_page_twice(owner, acme):
    """A label names the first that has its id, and leaves the second without a name."""
    twice = {}
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path, follow=True).content.decode()
        counts = Counter(re.findall(r"\sid=\"([^\"]+)\"", page))
        if found := sorted(name for name, count in counts.items() if count > 1):
            twice[path] = found

    assert twice == {}


def test_every_label_names_a_field_of_its_page(owner, acme):
    loose = {}
    for path in furnished.pages(furnish(acme)):
        page = owner.get(path, follow=True).content.decode()
        ids = set(re.findall(r"\sid=\"([^\"]+)\"", page))
        if found := sorted(set(re.findall(r"<label[^>]*\sfor=\"([^\"]+)\"", page)) - ids):
            loose[path] = found

    assert loose == {}
