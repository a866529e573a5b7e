"""`gateway`: the API from the command line.

Exit codes: 0 fine, 1 refused or not reachable, 2 wrong usage, 3 `detect` flagged the text. `batch`:
1 as well, when a text has no verdict.
"""

from __future__ import annotations

import argparse
import base64
import getpass
import hashlib
import hmac
import io
import json
import math
import os
import secrets as random_secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Callable, Generic, Optional, TypeVar, Union
from urllib.parse import urlsplit

import httpx

from gateway_guard import Client, GatewayError, _core, errors, models
from gateway_guard.version import VERSION

FLAGGED = 3
SERVICE = "gateway-guard"
DEFAULT_URL = "http://127.0.0.1:8000"
POLL_SECONDS = 2.0
WEBHOOKS_SECONDS = 30.0
"""How often `listen` looks for webhooks that were made meanwhile."""
LATE = timedelta(seconds=10)
"""How much later than its time a row may be written."""
KNOWN_MAX = 10_000
ENCODING = "utf-8-sig"
"""Of files that are read: with the mark that Windows puts before UTF-8, and without."""
FORWARD_SECONDS = 15.0
Command = Callable[[Client, argparse.Namespace], Optional[int]]
T = TypeVar("T")
Row = TypeVar("Row", bound=Union[models.LoggedRequest, models.Delivery])


def main(arguments: Optional[list[str]] = None) -> int:
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8")  # what Windows takes for a pipe's is none of ours
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        if options.command in (_login, _completion):
            return int(options.command(options))
        known = _remembered()
        url = options.url or os.environ.get("GATEWAY_URL") or known.get("url") or DEFAULT_URL
        key = os.environ.get("GATEWAY_API_KEY") or _remembered_key(known, url)
        if not key:
            return _fail(f"No key for {url}. Run `gateway login`, or set GATEWAY_API_KEY.")
        with Client(key, base_url=url, timeout=options.timeout) as client:
            command: Command = options.command
            return command(client, options) or 0
    except GatewayError as error:
        return _fail(str(error))
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except EOFError:
        return _fail("Nobody is there to ask: pass --url, and set GATEWAY_API_KEY.")
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="Ask a gateway for verdicts.")
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("--url", help="of the gateway (GATEWAY_URL, or what `login` was told)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, does: Any, text: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=does)
        return one

    command("login", _login, "Remember an address and a key, readable by you alone.")
    one = command("detect", _detect, "Judge one text: an argument, a file, or standard input.")
    one.add_argument("text", nargs="?", help="default: standard input")
    one.add_argument("--file", type=Path)
    one.add_argument("--content-type", default=None)
    one.add_argument("--threshold", type=float)
    one.add_argument("--json", action="store_true", help="the whole verdict")
    one = command("batch", _batch, "Judge each line of a JSONL file; go on where it stopped.")
    one.add_argument("file", type=Path, help='lines such as {"id": "1", "text": "…"}')
    one.add_argument("--output", type=Path, help="default: FILE.results.jsonl")
    one = command(
        "evaluate", _evaluate, 'Compare with the labels of a JSONL file ("label": 0 or 1).'
    )
    one.add_argument("file", type=Path)
    command("limits", _limits, "Show what is left of each limit.")
    one = command("keys", _keys, "List, make or revoke keys (scope keys:write).")
    one.add_argument("action", choices=["list", "create", "revoke"], nargs="?", default="list")
    one.add_argument("name", nargs="?", default="", help="of a new key; the id of one to revoke")
    one.add_argument("--scope", action="append")
    one = command("policy", _policy, "Show the key's policy, or set it from a JSON file.")
    one.add_argument("action", choices=["get", "set"], nargs="?", default="get")
    one.add_argument("file", type=Path, nargs="?")
    one = command("requests", _requests, "Show the newest calls; `tail` goes on.")
    one.add_argument("action", choices=["list", "tail"], nargs="?", default="list")
    one.add_argument("--decision")
    one.add_argument("--json", action="store_true")
    one = command("listen", _listen, "Forward this workspace's events to a receiver of yours.")
    _add_listening(one, is_required=True)
    one = command("webhooks", _webhooks, "List webhooks; `listen` forwards their events to you.")
    one.add_argument("action", choices=["list", "listen"], nargs="?", default="list")
    _add_listening(one, is_required=False)
    command("doctor", _doctor, "See whether the address, the key and the clock are right.")
    one = command("completion", _completion, "Print what a shell needs to complete commands.")
    one.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def _add_listening(one: argparse.ArgumentParser, *, is_required: bool) -> None:
    one.add_argument(
        "--forward", required=is_required, metavar="URL", help="http://localhost:3000/hook"
    )
    one.add_argument("--events", type=int, default=0, help="end after so many; 0: go on")


# -- Shells ---------------------------------------------------------------------------------------

BASH = """\
# Put into ~/.bashrc: eval "$(gateway completion bash)"
_gateway() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="" one
  for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$one" in {commands}) command="$one"; break;; esac
  done
  local words
  case "$command" in
{cases}
    *) words="{top}";;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ -n "$command" ] && COMPREPLY+=($(compgen -f -- "$word"))
}}
complete -o filenames -F _gateway gateway
"""
ZSH = """\
# Put into ~/.zshrc: eval "$(gateway completion zsh)"
autoload -Uz compinit bashcompinit && compinit -u && bashcompinit
"""


def _completion(options: argparse.Namespace) -> int:
    """Of what the parser knows, so it cannot fall behind."""
    parser = _parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    words = {name: [*_options_of(one)] for name, one in subparsers.choices.items()}
    if options.shell == "fish":
        lines = ["# Put into ~/.config/fish/config.fish: gateway completion fish | source"]
        top = " ".join(words)
        lines.append(f"complete -c gateway -n 'not __fish_seen_subcommand_from {top}' -a '{top}'")
        for name, known in words.items():
            seen = f"-n '__fish_seen_subcommand_from {name}'"
            for word in known:
                what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
                lines.append(f"complete -c gateway {seen} {what}")
        _say("\n".join(lines))
        return 0
    cases = "\n".join(f'    {name}) words="{" ".join(known)}";;' for name, known in words.items())
    top = " ".join([*words, *_options_of(parser)])
    script = BASH.format(commands="|".join(words), cases=cases, top=top)
    _say((ZSH if options.shell == "zsh" else "") + script)
    return 0


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        yield from (word for word in action.option_strings if word.startswith("--"))
        if not action.option_strings:
            yield from (str(word) for word in action.choices or ())


# -- Who we are -----------------------------------------------------------------------------------


def _store() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gateway" / "login.json"


def _keyring() -> Any:
    """The machine's, where the library and a safe place are there; else None."""
    try:
        import keyring  # type: ignore[import-not-found,unused-ignore]
        from keyring.errors import KeyringError  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    try:
        return keyring if keyring.get_keyring().priority >= 1 else None
    except (KeyringError, RuntimeError):
        return None


def _login(options: argparse.Namespace) -> int:
    url = options.url or input(f"Address of the gateway [{DEFAULT_URL}]: ").strip() or DEFAULT_URL
    key = os.environ.get("GATEWAY_API_KEY") or getpass.getpass("API key (not shown): ").strip()
    with Client(key, base_url=url, timeout=options.timeout) as client:
        profile = client.profile()
    known, ring = {"url": url}, _keyring()
    if ring is not None:
        ring.set_password(SERVICE, url, key)
    else:
        known["key"] = key
    path = _store()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made for its owner from the beginning: there is no moment in which others can read it.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(known, file)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    where = "the keyring" if ring is not None else str(path)
    _say(f"Signed in to {profile.workspace.get('name', '')}; the key is in {where}.")
    return 0


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in known.items()} if isinstance(known, dict) else {}


def _remembered_key(known: dict[str, str], url: str) -> Optional[str]:
    """The one that this address was told: another one has no business with it."""
    if "key" in known:
        return known["key"] if known.get("url", "").rstrip("/") == url.rstrip("/") else None
    ring = _keyring()
    return ring and ring.get_password(SERVICE, url)


# -- Verdicts -------------------------------------------------------------------------------------


def _detect(client: Client, options: argparse.Namespace) -> int:
    if options.file is not None:
        text = options.file.read_text(encoding=ENCODING)
    elif options.text is not None:
        text = options.text
    else:
        text = sys.stdin.read()
    found = client.detect(text, content_type=options.content_type, threshold=options.threshold)
    if options.json:
        _say(found.model_dump_json(indent=2))
    else:
        kinds = ", ".join(found.threat_types) or "nothing found"
        _say(f"{found.decision}  {found.confidence:.2f}  {kinds}")
        if found.reason:
            _say(f"      {found.reason}")
    return FLAGGED if found.flagged else 0


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding=ENCODING) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                if not isinstance(item, dict) or not isinstance(item.get("text"), str):
                    raise ValueError
            except ValueError:
                raise ValueError(f'{path}:{number} is no {{"text": "…"}} in JSON.') from None
            item.setdefault("id", str(number))
            yield item


def _batch(client: Client, options: argparse.Namespace) -> int:
    """What has a verdict in the output is not asked again: that is how it goes on after a stop.

    Lines are only added, so of an id that failed before, the last one counts.
    """
    output = options.output or options.file.with_suffix(".results.jsonl")
    done = _judged(output)
    wanted = ("id", "text", "config", "metadata")
    items = [
        {name: item[name] for name in wanted if name in item}
        for item in _lines(options.file)
        if str(item["id"]) not in done
    ]
    total, flagged, failed = len(done) + len(items), 0, 0
    with output.open("a", encoding="utf-8") as file:
        if not _is_whole(output):
            file.write("\n")
        written = len(done)

        def show(job: models.Job) -> None:
            _bar(written + job.done, total)

        for result in client.detect_many(items, on_progress=show):
            file.write(result.model_dump_json() + "\n")
            file.flush()
            written += 1
            flagged += bool(result.result and result.result.flagged)
            failed += result.result is None
            _bar(written, total)
    _bar_end()
    _say(f"{written} results in {output}, {flagged} flagged now, {len(done)} were there before.")
    if failed:
        return _fail(f"{failed} have no verdict: the file says why. Run it again to ask for them.")
    return 0


def _judged(output: Path) -> set[str]:
    """The ids that have a verdict."""
    found = set()
    if output.exists():
        # Half a line may end within a letter, and is half JSON: of a run that was stopped.
        with output.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError):
                    result = models.ItemResult.model_validate_json(line)
                    if result.result is not None:
                        found.add(result.id)
    return found


def _is_whole(output: Path) -> bool:
    """Whether its last line, if there is one, has an end."""
    return output.read_bytes()[-1:] in (b"", b"\n")


def _evaluate(client: Client, options: argparse.Namespace) -> int:
    items = list(_lines(options.file))
    for item in items:
        if item.get("label") not in (0, 1):
            return _fail(f'{options.file}: the text {item["id"]} has no "label" that is 0 or 1.')
    counts = {(label, flag): 0 for label in (0, 1) for flag in (False, True)}
    failed = 0
    asked = ({"id": str(n), "text": item["text"]} for n, item in enumerate(items))
    for item, result in zip(items, client.detect_many(list(asked))):
        if result.result is None:
            failed += 1
        else:
            counts[int(item["label"]), result.result.flagged] += 1
        _bar(sum(counts.values()) + failed, len(items))
    _bar_end()
    attacks, harmless = counts[1, False] + counts[1, True], counts[0, False] + counts[0, True]
    _say(f"attacks found  {counts[1, True]} of {attacks}" + _percent(counts[1, True], attacks))
    _say(f"false alarms   {counts[0, True]} of {harmless}" + _percent(counts[0, True], harmless))
    if failed:
        _say(f"no verdict     {failed}")
    return 0


def _percent(part: int, whole: int) -> str:
    return f"  ({100 * part / whole:.1f} %)" if whole else ""


# -- The account ----------------------------------------------------------------------------------


def _limits(client: Client, options: argparse.Namespace) -> None:
    for limit in client.limits().policies:
        _say(
            f"{limit.name:18}{limit.remaining:>9,} of {limit.limit:>9,}"
            f"   whole again in {limit.reset_seconds} s"
        )


def _keys(client: Client, options: argparse.Namespace) -> Optional[int]:
    if options.action == "create":
        fields = {"scopes": options.scope} if options.scope else {}
        made = client.keys.create(options.name, **fields)
        _say(f"{made.key}\nShown this once. Scopes: {', '.join(made.scopes)}")
    elif options.action == "revoke":
        if not options.name:
            return _fail("Which one? `gateway keys` shows the ids.")
        client.keys.revoke(options.name)
        _say("Revoked.")
    else:
        for key in client.keys.list():
            _say(f"{key.id}  {key.prefix}…{key.last4}  {key.status:8}  {key.name}")
    return None


def _policy(client: Client, options: argparse.Namespace) -> Optional[int]:
    if options.action == "get":
        _say(client.policy.get().model_dump_json(indent=2))
        return None
    if options.file is None:
        return _fail(
            "From which file? `gateway policy set FILE`; `gateway policy get` shows the form."
        )
    wanted = json.loads(options.file.read_text(encoding=ENCODING))
    if not isinstance(wanted, dict):
        return _fail(f"{options.file} is no policy: `gateway policy get` shows the form.")
    for name in ("id", "version", "updated_at"):  # as `get` shows them
        wanted.pop(name, None)
    found = client.policy.set(wanted)
    _say(f"In force: version {found.version}.")
    return None


def _requests(client: Client, options: argparse.Namespace) -> None:
    newest: Newest[models.LoggedRequest] = Newest()
    filters = {"decision": options.decision, "limit": 50}
    _show(newest.begin(client.requests.list(**filters), at_least=20)[-20:], options)
    while options.action == "tail":
        time.sleep(POLL_SECONDS)
        _show(
            _patiently(lambda: newest.of(client.requests.list(since=newest.since, **filters))),
            options,
        )


def _show(requests: Iterable[models.LoggedRequest], options: argparse.Namespace) -> None:
    for request in requests:
        if options.json:
            _say(request.model_dump_json())
            continue
        score = "    " if request.confidence is None else f"{request.confidence:.2f}"
        what = request.decision or request.error_code or ""
        _say(
            f"{request.created_at:%H:%M:%S}  {request.http_status}  {score}  {what:18}  "
            f"{request.endpoint}  {request.request_id}"
        )


class Newest(Generic[Row]):
    """What is new in a list whose newest rows come first, however many they are.

    Rows are written a little later than their time, and not in its order, so each look goes back
    `LATE` before the newest one that is known: `since`.
    """

    def __init__(self, since: Optional[datetime] = None) -> None:
        self.since = since
        self._seen: dict[str, datetime] = {}

    def begin(self, rows: Iterable[Row], at_least: int = 0) -> list[Row]:
        """What is there already, the oldest first: so many, and all between which a new one may
        come."""
        found: list[Row] = []
        for row in rows:
            if found and row.created_at < found[0].created_at - LATE and len(found) >= at_least:
                break
            found.append(row)
        return self.of(found)

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """What was not seen before, the oldest first. `rows`: all from `since` on."""
        found = {_id_of(row): row for row in rows}
        fresh = [row for one, row in found.items() if one not in self._seen]
        self._seen.update((one, row.created_at) for one, row in found.items())
        if self._seen:
            self.since = since = max(self._seen.values()) - LATE
            self._seen = {one: at for one, at in self._seen.items() if at >= since}
        return fresh[::-1]


def _id_of(row: Union[models.LoggedRequest, models.Delivery]) -> str:
    return row.id if isinstance(row, models.Delivery) else row.request_id


def _patiently(ask: Callable[[], T]) -> T:
    """What it gives, sooner or later: who listens does so for days. Raises what time does not
    help with."""
    patience, is_reported = _core.Patience(math.inf), False
    while True:
        try:
            return ask()
        except GatewayError as error:
            wait = patience.after(error)
            if not is_reported:
                sys.stderr.write(f"{error}\nIt is asked again until it answers.\n")
                is_reported = True
            time.sleep(wait)


# -- Events ---------------------------------------------------------------------------------------


def _listen(client: Client, options: argparse.Namespace) -> Optional[int]:
    """Events that this workspace's webhooks are sent, from now on, under a secret of its own."""
    if urlsplit(options.forward).scheme not in ("http", "https"):
        return _fail("--forward takes an address such as http://localhost:3000/hook")
    hooks = list(client.webhooks.list())
    if not hooks:
        return _fail(
            "This workspace has no webhook, so no event is made. Make one first; the inbox in the "
            "portal needs no receiver."
        )
    key = random_secrets.token_bytes(24)
    _say(f"Forwarding to {options.forward}. Verify with this secret, until you stop:")
    _say(f"  whsec_{base64.b64encode(key).decode()}")
    events, forwarded = Events(client, hooks), 0
    with httpx.Client(timeout=FORWARD_SECONDS) as receiver:
        while True:
            time.sleep(POLL_SECONDS)
            for event in events.fresh():
                answer = _forward(receiver, options.forward, event, key)
                _say(f"{event.created_at:%H:%M:%S}  {event.event:24} {answer}")
                forwarded += 1
                if options.events and forwarded >= options.events:
                    return None


class Events:
    """Of all webhooks of a workspace, those that are made meanwhile too, from now on, each once."""

    def __init__(self, client: Client, hooks: Iterable[models.Webhook]) -> None:
        self._webhooks = client.webhooks
        self._newest: dict[str, Newest[models.Delivery]] = {}
        self._known: dict[str, None] = {}
        self._looked = time.monotonic()
        for hook in hooks:
            self._newest[hook.id] = Newest()
            rows = self._webhooks.deliveries(hook.id, limit=50)
            self._unknown(self._newest[hook.id].begin(rows))

    def fresh(self) -> Iterator[models.Delivery]:
        """The oldest first."""
        if time.monotonic() - self._looked > WEBHOOKS_SECONDS:
            hooks = _patiently(lambda: list(self._webhooks.list()))
            self._newest = {
                hook.id: self._newest.get(hook.id) or Newest(hook.created_at) for hook in hooks
            }
            self._looked = time.monotonic()
        found = [
            one for hook_id in self._newest for one in _patiently(partial(self._look, hook_id))
        ]
        for one in self._unknown(sorted(found, key=lambda each: each.created_at)):
            try:
                yield _patiently(partial(self._webhooks.delivery, one.id))
            except (errors.NotFoundError, errors.ScopeDenied):
                continue  # it, or its webhook, was deleted meanwhile; or it is for other keys

    def _look(self, hook_id: str) -> list[models.Delivery]:
        newest = self._newest[hook_id]
        try:
            return newest.of(self._webhooks.deliveries(hook_id, since=newest.since, limit=50))
        except errors.NotFoundError:
            return []

    def _unknown(self, deliveries: Iterable[models.Delivery]) -> list[models.Delivery]:
        """One of each event: several webhooks are told of it."""
        found = {one.event_id: one for one in deliveries if one.event_id not in self._known}
        self._known.update(dict.fromkeys(found))
        for old in [*self._known][:-KNOWN_MAX]:
            del self._known[old]
        return [*found.values()]


def _webhooks(client: Client, options: argparse.Namespace) -> Optional[int]:
    if options.action == "listen":
        if not options.forward:
            return _fail(
                "Where to? `gateway webhooks listen --forward http://localhost:3000/hook`."
            )
        return _listen(client, options)
    for hook in client.webhooks.list():
        state = "active" if hook.is_active else "off"
        _say(f"{hook.id}  {state:8}{hook.url}  {', '.join(hook.events)}")
    return None


def _forward(receiver: httpx.Client, url: str, event: models.Delivery, key: bytes) -> str:
    body = json.dumps(event.body, ensure_ascii=False, separators=(",", ":")).encode()
    now = str(int(time.time()))
    signed = f"{event.event_id}.{now}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    headers = {
        "content-type": "application/json",
        "webhook-id": event.event_id,
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{signature}",
    }
    began = time.monotonic()
    try:
        status = str(receiver.post(url, content=body, headers=headers).status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return f"{type(exc).__name__}: is your receiver running?"
    return f"{status}  {(time.monotonic() - began) * 1000:.0f} ms"


# -- Seeing what is wrong -------------------------------------------------------------------------


def _doctor(client: Client, options: argparse.Namespace) -> int:
    profile = client.profile()
    key = profile.api_key
    _say(f"ok   the gateway answers, and knows the key {key.prefix}…{key.last4} ({key.status})")
    _say(f"ok   workspace {profile.workspace.get('name', '')}, scopes: {', '.join(key.scopes)}")
    response = client.raw("GET", "/v1/limits")
    skew = 0.0
    if "date" in response.headers:
        skew = time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    is_off = abs(skew) > 60
    _say(
        f"{'bad' if is_off else 'ok '}  this clock and the gateway's differ by {skew:+.0f} s"
        + (": signatures of webhooks will be refused" if is_off else "")
    )
    began = time.monotonic()
    score = client.score("Hello")
    _say(f"ok   a score from {score.source} in {(time.monotonic() - began) * 1000:.0f} ms")
    return int(is_off)


# -- Saying ---------------------------------------------------------------------------------------


def _say(text: str) -> None:
    # A text that is judged may be quoted in it, and a terminal does what some letters say.
    harmless = (one if one.isprintable() or one in "\n\t" else "\ufffd" for one in text)
    sys.stdout.write("".join(harmless) + "\n")
    sys.stdout.flush()


def _fail(text: str) -> int:
    sys.stderr.write(text + "\n")
    return 1


def _bar(done: int, total: int) -> None:
    if sys.stderr.isatty() and total:
        filled = 30 * done // total
        sys.stderr.write(f"\r[{'█' * filled}{' ' * (30 - filled)}] {done:,} of {total:,} ")
        sys.stderr.flush()


def _bar_end() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\n")


if __name__ == "__main__":
    sys.exit(main())
