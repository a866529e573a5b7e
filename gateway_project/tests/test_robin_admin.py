"""Staff's view of what Robin UI keeps here: that it is not Robin's, and no secret."""

from __future__ import annotations

from robin.models import BlocklistEntry, Document


def test_documents(root):
    Document.objects.create(
        pk="rspamd", content={"host": "rspamd", "apiKey": "hunter2"}, updated_by="ada"
    )
    listed = root.get("/admin/robin/document/").text
    shown = root.get("/admin/robin/document/rspamd/change/").text

    assert "stored here, not applied to Robin" in listed
    assert "hunter2" not in listed + shown
    assert "rspamd" in shown


def test_the_blocklist(root):
    for value in ("192.0.2.7", "192.0.2.8"):
        BlocklistEntry.objects.create(type="IP", value=value, reason="Spam", created_by="ada")
    listed = root.get("/admin/robin/blocklistentry/").text
    found = root.get("/admin/robin/blocklistentry/?q=192.0.2.7").text
    entry = BlocklistEntry.objects.get(value="192.0.2.7")

    assert "192.0.2.7" in listed
    assert "192.0.2.8" in listed
    assert "192.0.2.8" not in found
    assert "_save" not in root.get(f"/admin/robin/blocklistentry/{entry.pk}/change/").text
