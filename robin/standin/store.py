"""The stand-in's mail store: a browser of directories, and what webmail does to folders."""

from __future__ import annotations

import json
from typing import Any

from robin.standin.seed_data import SeedData
from robin.standin.server import HTML, Call, Refused, Reply, as_json

SCOPES = ("folders", "messages", "drafts")


class Store:
    def __init__(self, seed: SeedData) -> None:
        self.seed = seed

    def browse(self, call: Call) -> Reply:
        parts = [p for part in call.segments("/store") for p in part.replace("\\", "/").split("/")]
        if any(".." in part for part in parts):
            return self._error(call, 403, "Forbidden")
        is_properties = len(parts) >= 5 and (parts[2], parts[-1]) == ("folders", "properties")
        if len(parts) >= 3 and parts[2] in SCOPES and (call.method != "GET" or is_properties):
            return self._scope(call, "/".join(parts[:2]), parts[2], parts[3:])
        if call.method != "GET":
            return as_json({"error": "Not Found"}, 404)
        path = "/".join(parts)
        if path in self.seed.mails:
            if not path.lower().endswith(".eml"):
                return self._error(call, 404, "Not Found")
            return self._file(call, path)
        if parts and path not in self.seed.folders:
            return self._error(call, 404, "Not Found")
        return self._directory(call, path)

    @staticmethod
    def _error(call: Call, status: int, text: str) -> Reply:
        return as_json({"error": text}, status) if call.wants_json else Reply(text, status)

    def _file(self, call: Call, path: str) -> Reply:
        content = self.seed.mails[path]
        if not call.wants_json:
            return Reply(content)
        # Strict, and nobody catches it: the connection ends without an answer.
        text = content.decode("utf-8")
        name = path.rpartition("/")[2]
        facts = {"path": f"/store/{path}", "name": name, "size": len(content)}
        return as_json({**facts, "content": text})

    def _directory(self, call: Call, path: str) -> Reply:
        prefix = f"{path}/" if path else ""
        items: list[dict[str, Any]] = []
        if path:
            parent = path.rpartition("/")[0]
            items.append({"type": "dir", "name": "..", "path": f"/store/{parent}"})
        below = [f for f in self.seed.folders if f.startswith(prefix) and f != path]
        names = {f[len(prefix) :] for f in below if "/" not in f[len(prefix) :]}
        entries: list[dict[str, Any]] = [
            {"type": "dir", "name": name, "path": f"/store/{prefix}{name}/"} for name in names
        ]
        for mail, content in self.seed.mails.items():
            name = mail[len(prefix) :]
            if mail.startswith(prefix) and "/" not in name and name.lower().endswith(".eml"):
                entry = {"type": "file", "name": name, "path": f"/store/{mail}"}
                entries.append({**entry, "size": len(content)})
        items += sorted(entries, key=lambda entry: entry["name"].lower())
        items = [{**i, "name": _listed(i["name"]), "path": _listed(i["path"])} for i in items]
        if call.wants_json:
            return as_json({"path": f"/{path}", "items": items})
        signs = {"dir": "\U0001f4c1", "file": "\U0001f4e7"}
        lines = [
            f"<li>{signs[i['type']]} <a href='{i['path']}'>{i['name']}</a>"
            + (f" ({i['size']} bytes)" if "size" in i else "")
            for i in items
        ]
        return Reply(f"<html><body><ul>{''.join(lines)}</ul></body></html>", content_type=HTML)

    def rocksdb(self, call: Call) -> Reply:
        if not self.seed.rocksdb:
            return as_json({"error": "RocksDB storage disabled."}, 503)
        return as_json({"error": "Not Found"}, 404)

    # -- Folders, messages, drafts ----------------------------------------------------------------

    def _scope(self, call: Call, mailbox: str, scope: str, rest: list[str]) -> Reply:
        if scope == "folders":
            return self._folders(call, mailbox, rest)
        if scope == "messages":
            return self._messages(call, mailbox, rest)
        return self._drafts(call, mailbox, rest)

    def _folders(self, call: Call, mailbox: str, rest: list[str]) -> Reply:
        if call.method == "POST" and not rest:
            name = _body(call, folder=True).get("name")
            if not name:
                return _message(400, "Folder name is required.")
            if "/" in name or ".." in name:
                return _message(400, "Invalid folder name.")
            self.seed.folders |= {f"{mailbox}/.{name}", f"{mailbox}/.{name}/cur"}
            return _message(200, "Folder created.")
        verb = rest[-1] if rest and rest[-1] in ("copy", "move", "properties") else ""
        name = "/".join(rest[:-1] if verb else rest)
        if name.lower() == "inbox" and not verb:
            return _message(400, "Cannot modify inbox root.")
        folder = _maildir(mailbox, name)
        if not name or folder not in self.seed.folders:
            return _message(404, "Folder not found.")
        inside = [m for m in self.seed.mails if m.startswith(f"{folder}/")]
        if call.method == "GET" and verb == "properties":
            unread = sum("/new/" in m for m in inside)
            size = sum(len(self.seed.mails[m]) for m in inside)
            return as_json({"r": 1, "size": size, "unread": unread, "total": len(inside)})
        if call.method == "PATCH" and not verb:
            new = _body(call, folder=True).get("name")
            if not new:
                return _message(400, "Folder name is required.")
            self._move(folder, _maildir(mailbox, new), keep=False)
            return _message(200, "Folder renamed.")
        if call.method == "DELETE" and not verb:
            if inside:
                return _message(400, "Folder is not empty.")
            self.seed.folders = {
                f for f in self.seed.folders if f != folder and not f.startswith(f"{folder}/")
            }
            return _message(200, "Folder removed.")
        if call.method == "POST" and verb in ("copy", "move"):
            given = _body(call, folder=True)
            new = given.get("newName") or name
            parent = given.get("destinationParent")
            target = _maildir(mailbox, f"{parent}.{new}" if parent else f"{new}")
            self._move(folder, target, keep=verb == "copy")
            return _message(200, "Folder copied." if verb == "copy" else "Folder moved.")
        return as_json({"error": "Not Found"}, 404)

    def _move(self, folder: str, target: str, *, keep: bool) -> None:
        for path in [p for p in self.seed.mails if p.startswith(f"{folder}/")]:
            content = self.seed.mails[path] if keep else self.seed.mails.pop(path)
            self.seed.put(target + path[len(folder) :], content)
        below = [f for f in self.seed.folders if f == folder or f.startswith(f"{folder}/")]
        self.seed.folders |= {target + f[len(folder) :] for f in below}
        if not keep:
            self.seed.folders -= set(below)

    def _messages(self, call: Call, mailbox: str, rest: list[str]) -> Reply:
        if call.method != "POST" or len(rest) != 1:
            return as_json({"error": "Not Found"}, 404)
        given = _body(call)
        folder = _maildir(mailbox, given.get("fromFolder") or given.get("folder") or "inbox")
        inside = [m for m in self.seed.mails if m.startswith(f"{folder}/")]
        chosen = [m for m in inside if m.rpartition("/")[2] in given.get("messageIds", [])]
        match rest[0]:
            case "move":
                target = _maildir(mailbox, given.get("toFolder") or "inbox")
                for path in chosen:
                    name = path.rpartition("/")[2]
                    self.seed.put(f"{target}/cur/{name}", self.seed.mails.pop(path))
                return as_json({"success": bool(chosen), "moved": len(chosen)})
            case "read-status":
                if given.get("action") not in ("read", "unread"):
                    return as_json({"error": "Invalid action"}, 400)
                return as_json({"moved": self._mark(chosen, given["action"] == "read")})
            case "mark-all-read":
                return as_json({"success": True, "moved": self._mark(inside, True)})
            case "delete-all":
                for path in inside:
                    del self.seed.mails[path]
                return as_json({"success": True, "deleted": len(inside)})
            case "cleanup":
                return as_json({"r": 1, "msg": "Cleanup complete.", "affected": 0})
        return as_json({"error": "Not Found"}, 404)

    def _mark(self, paths: list[str], is_read: bool) -> int:
        old, new = ("/new/", "/cur/") if is_read else ("/cur/", "/new/")
        moving = [p for p in paths if old in p]
        for path in moving:
            self.seed.put(path.replace(old, new), self.seed.mails.pop(path))
        return len(moving)

    def _drafts(self, call: Call, mailbox: str, rest: list[str]) -> Reply:
        folder = f"{mailbox}/.Drafts/cur"
        if len(rest) == 2 and rest[1] == "attachments" and call.method == "POST":
            name = call.query.get("filename", "file").removesuffix(".eml")
            name = f"att-{self.seed.queue.uuid()}-{name}.eml"
            self.seed.put(f"{folder}/{name}", call.body)
            return as_json({"r": 1, "f": [name]})
        if len(rest) == 3 and rest[1] == "attachments" and call.method == "DELETE":
            self.seed.mails.pop(f"{folder}/{rest[2]}", None)
            return as_json({"r": 1})
        if len(rest) == 1 and call.method == "DELETE":
            self.seed.mails.pop(f"{folder}/{rest[0]}", None)
            return as_json({"r": 1, "msg": "mail successfully discarded."})
        if (call.method, len(rest)) not in (("POST", 0), ("PUT", 1)):
            return as_json({"error": "Not Found"}, 404)
        name = rest[0] if rest else f"draft-{self.seed.queue.uuid()}.eml"
        self.seed.put(f"{folder}/{name}", call.body)
        return as_json({"r": 1, "draftId": name, "msg": "mail successfully saved."})


def _listed(name: str) -> str:
    """With U+FFFD for what is no UTF-8; nobody can ask for that again."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _maildir(mailbox: str, name: str) -> str:
    """`Office` → `…/.Office`; `inbox` is the mailbox itself."""
    return mailbox if name.lower() == "inbox" else f"{mailbox}/.{name.lstrip('.')}"


def _body(call: Call, *, folder: bool = False) -> dict[str, Any]:
    try:
        given = json.loads(call.body or b"{}")
    except ValueError:
        given = None
    if isinstance(given, dict):
        return given
    text = '{"r":0,"msg":"Invalid JSON body."}' if folder else '{"error":"Invalid JSON body"}'
    raise Refused(400, text, is_json=True)


def _message(status: int, text: str) -> Reply:
    return as_json({"r": int(status == 200), "msg": text}, status)
