"""No call of OpenAI's and Anthropic's libraries leads past a guard."""

from __future__ import annotations

import copy
import importlib

import pytest

from gateway_guard import errors

from ..fakes import ATTACK
from . import api_calls

pytest.importorskip("openai", reason="needs openai: `make sdk-test`")
pytest.importorskip("anthropic", reason="needs anthropic: `make sdk-test`")

UNJUDGED = {
    "admin, organization, workspaces and their webhooks: no model reads it": (
        *("admin.", "organization.", "beta.organization.", "webhooks.", "user_profiles."),
        *("beta.user_profiles.", "beta.tunnels.", "beta.vaults.", "beta.agents.vaults."),
    ),
    "it asks no model, but whether something is an attack, or how long it is": (
        *("moderations.", "responses.input_tokens.", "messages.count_tokens"),
        "beta.messages.count_tokens",
    ),
    "names and places of files, and their bytes": (
        *("files.", "beta.files.", "uploads.", "vector_stores.", "containers.", "skills."),
        *("beta.skills.", "batches.create", "audio.voice", "videos.create_character"),
        *("images.create_variation", "beta.sessions.resources.", "beta.memory_stores.create"),
        "beta.memory_stores.update",
    ),
    "labels on what is there already": (
        *("conversations.update", "chat.completions.update", "beta.chat.completions.update"),
        *("beta.threads.update", "beta.threads.runs.update", "beta.threads.messages.update"),
    ),
    "the application's own: its agents, where they work, and its evaluations": (
        *("evals.", "fine_tuning.", "beta.agents.environments.", "beta.agents.automations."),
        *("beta.agents.sessions.update", "beta.chatkit.", "beta.environments."),
        *("beta.sessions.update", "beta.dreams."),
    ),
    "spoken, on a connection of its own": ("realtime.", "beta.realtime.", "live."),
}
LIBRARIES = {"openai": "OpenAI", "anthropic": "Anthropic"}


def guarded(library, guard, used=None):
    module = importlib.import_module(library)
    more = {"admin_api_key": "x"} if library == "openai" else {}
    plain = getattr(module, LIBRARIES[library])(
        api_key="x", base_url="http://127.0.0.1:9", max_retries=0, **more
    )
    if used is not None:
        used(plain)
    ours = importlib.import_module(f"gateway_guard.integrations.{library}")
    return getattr(ours, f"guard_{library}")(plain, guard), module.APIConnectionError


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_text_that_is_sent_is_judged_or_left_out_for_a_reason(library, guard):
    client, sent = guarded(library, guard)
    left_out = tuple(name for names in UNJUDGED.values() for name in names)
    judged, passed = 0, []
    for name, method in api_calls.calls(client):
        given = api_calls.filled(method)
        try:
            method(**copy.deepcopy(given))
        except errors.Blocked:
            judged += 1
        except sent:
            if ATTACK in str(given) and not name.startswith(left_out):
                passed.append(name)

    assert passed == []
    assert judged >= 10


@pytest.mark.parametrize("wrapped", ["with_raw_response", "with_streaming_response"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_was_used_before_is_guarded_as_well(library, guard, wrapped):
    def used(plain):
        getattr(plain, wrapped).chat if library == "openai" else getattr(plain, wrapped).messages

    client, _ = guarded(library, guard, used)
    rows = [{"role": "user", "content": ATTACK}]
    wrapper = getattr(client, wrapped)
    with pytest.raises(errors.Blocked):
        if library == "openai":
            wrapper.chat.completions.create(model="m", messages=rows).__enter__()
        else:
            wrapper.messages.create(model="m", messages=rows, max_tokens=9).__enter__()
