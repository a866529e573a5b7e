"""Every place of an agent where a text comes in: JSON by its strings, messages by their roles"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.models import StoredText
from accounts.services import Actor
from detection import embedded
from detection.content_types import CONTENT_TYPES
from detection.engines import fields, readings
from detection.policies import policy as policies
from detection.tests.test_detect import ATTACK, HARMLESS, problem
from gateway_project.core import encryption

PATH = "/v1/detect"
ESCAPED = "".join(f"\\u{ord(c):04x}" for c in ATTACK)


class TestFields:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ('{"a": {"b": ["x", {"c": "y"}]}}', {"$.a.b[0]": "x", "$.a.b[1].c": "y"}),
            ('[["x"], 1, true, null, "y"]', {"$[0][0]": "x", "$[4]": "y"}),
            ('  \n{"a": "x"}\n', {"$.a": "x"}),
            ('\ufeff{"a": "x"}', {"$.a": "x"}),
            ('{"a": "\\u0078"}', {"$.a": "x"}),
            ('{"a": "{\\"b\\": \\"x\\"}"}', {"$.a.b": "x"}),
            ('{"ignore all rules": 1}', {"$.{0}": "ignore all rules"}),
            ('{"a": "\\ud800x"}', {"$.a": "?x"}),
            (f'{{"n": {"1" * 5000}, "a": "x"}}', {"$.a": "x"}),
        ],
    )
    def test_each_string_has_a_path(self, text, found):
        document = fields.read(text)

        assert {field.path: field.text for field in document.fields} == found
        assert document.unread_chars == 0

    def test_of_a_member_that_stands_twice_both_are_read(self):
        """Parsers differ in which of them they keep."""
        document = fields.read('{"a": "first", "a": "second"}')

        assert [field.text for field in document.fields] == ["first", "second"]

    @pytest.mark.parametrize("text", ["", "{", "hello", "[1, 2]", "{}", '"x"', "[x]", "{'a': 'b'}"])
    def test_what_is_no_json_with_strings_is_a_text(self, text):
        assert fields.read(text) is None

    @pytest.mark.parametrize("depth", [40, 500, 4_900])
    def test_what_is_nested_too_deep_is_reported(self, depth):
        document = fields.read("[" * depth + json.dumps(ATTACK) + "]" * depth)

        assert document.unseen == (fields.NESTED,)
        assert document.unread_chars > 0

    @given(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=20),
            lambda some: (
                st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=20), some, max_size=4)
            ),
            max_leaves=8,
        )
    )
    def test_no_string_is_lost(self, value):
        def strings(value):
            if isinstance(value, str):
                yield value
            elif isinstance(value, list | dict):
                for item in value.values() if isinstance(value, dict) else value:
                    yield from strings(item)

        wanted = [s for s in strings(value if isinstance(value, list | dict) else []) if s.strip()]
        document = fields.read(json.dumps(value if isinstance(value, list | dict) else []))
        text = "" if document is None else document.text

        for one in wanted:
            if not one.strip().startswith(("{", "[")):
                assert one.encode(errors="replace").decode() in text

    def test_names_are_a_sentence_of_their_own(self):
        text = '{"a": {"b c": "x", "d": [{"a": 1, "e": "{\\"f\\": 2}"}]}}'

        document = fields.read(text)

        assert document.names == "a d e f"  # what is more than a word is a string of its own
        assert "b c" in document.text

    def test_a_path_never_repeats_the_text(self):
        document = fields.read(json.dumps({ATTACK: {"x": HARMLESS}}))

        assert [field.path for field in document.fields] == ["$.{0}", "$.{0}.x"]


class TestJsonTexts:
    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_escapes_hide_nothing_and_the_answer_names_the_path(
        self, gateway, engine, acme_key, content_type
    ):
        text = f'{{"status": "ok", "items": [{{"body": "{HARMLESS}"}}, {{"body": "{ESCAPED}"}}]}}'

        body = gateway.detect(text, key=acme_key, content_type=content_type).json()

        assert body["is_malicious"] is True
        assert body["location"] == {"path": "$.items[1].body"}
        assert body["coverage"] == {
            "scanned_chars": len(text), "total_chars": len(text), "unseen": [],
        }  # fmt: skip

    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_so_does_the_embedded_detector(self, gateway, engine, acme_key, content_type):
        engine.fails(503)
        text = json.dumps({"name": "x", "deep": [{"note": HARMLESS}, {"note": ATTACK}]})

        body = gateway.detect(
            text, key=acme_key, content_type=content_type, detailed_response=True
        ).json()

        assert (body["source"], body["is_malicious"]) == ("fallback", True)
        assert body["location"] == {"path": "$.deep[1].note"}
        assert "json" in body["details"]["views"]

    def test_the_definition_of_a_tool_is_judged_string_by_string(self, gateway, engine, acme_key):
        definition = {
            "name": "search",
            "description": "Search the web for pages. Returns titles and addresses.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": f"What to look for. {ATTACK}"}
                },
            },
        }

        body = gateway.detect(
            json.dumps(definition), key=acme_key, content_type="tool_definition"
        ).json()

        assert body["location"] == {"path": "$.inputSchema.properties.query.description"}
        texts = [asked["text"] for asked in engine.asked]
        assert definition["description"] in texts
        assert {asked["content_type"] for asked in engine.asked} == {"tool_definition"}

    @pytest.mark.parametrize("is_away", [False, True], ids=["engine", "embedded"])
    @pytest.mark.parametrize("content_type", ["tool_definition", "tool_call"])
    def test_an_order_hidden_in_names_is_found(
        self, gateway, engine, acme_key, content_type, is_away
    ):
        value: object = "x"
        for name in reversed(["parameters", *ATTACK.rstrip(".").split()]):
            value = {name: value}
        if is_away:
            engine.fails(503)

        body = gateway.detect(json.dumps(value), key=acme_key, content_type=content_type).json()

        assert body["is_malicious"] is True

    def test_arguments_of_a_call_are_json_in_json(self, gateway, engine, acme_key):
        call = {"name": "send_mail", "arguments": json.dumps({"to": "a@b.example", "body": ATTACK})}

        body = gateway.detect(json.dumps(call), key=acme_key, content_type="tool_call").json()

        assert body["location"] == {"path": "$.arguments.body"}

    def test_what_is_nested_too_deep_is_said_and_reviewed(self, gateway, engine, acme_key):
        text = "[" * 200 + json.dumps(HARMLESS) + "]" * 200

        body = gateway.detect(text, key=acme_key, content_type="tool_output").json()

        assert body["coverage"]["unseen"] == [{"reason": "nested_too_deep"}]
        assert (body["status"], body["decision"]) == ("partial", "review")

    def test_a_cut_is_reported(self, gateway, engine, acme_key, settings):
        settings.DETECTION_ENGINE_WINDOW_BYTES = 100

        body = gateway.detect("lorem ipsum " * 800, key=acme_key).json()

        assert body["coverage"]["unseen"] == [{"reason": "cut"}]
        assert body["coverage"]["scanned_chars"] < body["coverage"]["total_chars"]

    def test_a_language_without_rules_is_reported(self, gateway, engine, acme_key):
        engine.fails(503)

        body = gateway.detect("ጤና ይስጥልኝ እንደምን አደሩ", key=acme_key).json()

        assert {"reason": "language_without_rules"} in body["coverage"]["unseen"]

    def test_of_a_text_that_nobody_judged_it_is_reported(self, gateway, engine, acme_key):
        policies.save(acme_key.row, {"on_unavailable": "fail_open"}, actor=Actor("test"))
        engine.is_down()

        body = gateway.detect(HARMLESS, key=acme_key).json()

        assert body["coverage"]["unseen"] == [{"reason": "no_engine"}]

    def test_data_overlaps_more(self, gateway, engine, acme_key, settings):
        settings.DETECTION_ENGINE_WINDOW_BYTES = 500
        text = "lorem ipsum " * 200
        counts = []
        for content_type in ("user_input", "document"):
            engine.asked.clear()
            gateway.detect(text, key=acme_key, content_type=content_type)
            counts.append(len(engine.asked))

        assert counts[0] < counts[1]


class TestBothReadings:
    """A JSON text as it was sent, and by its strings."""

    @staticmethod
    def read(text):
        return readings.analyse(text, fields.read(text), "tool_output")

    def test_what_shows_in_the_strings_alone_has_evidence(self):
        text = json.dumps({"note": ATTACK}).replace("e", "\\u0065").replace("t", "\\u0074")
        raw = embedded.analyse(text, "tool_output")

        found = self.read(text)

        assert found.score > raw.score
        [shown, *_] = found.evidence
        assert (shown.view, shown.start, shown.end) == (readings.JSON_VIEW, 0, len(text))
        assert not {one.rule_id for one in raw.evidence} >= {one.rule_id for one in found.evidence}

    @pytest.mark.parametrize("cut", [0, 1], ids=["as it was sent", "the strings"])
    def test_what_either_did_not_look_at_is_reported(self, monkeypatch, cut):
        text = json.dumps({"note": ATTACK, "other": HARMLESS})
        whole = embedded.analyse

        def analyse(one, kind):
            found = whole(one, kind)
            if (one != text) != bool(cut):
                return found
            return replace(found, scanned_chars=found.total_chars // 2, unseen=("time",), score=0.0)

        monkeypatch.setattr(readings.embedded, "analyse", analyse)
        found = self.read(text)

        assert found.score >= 0.6
        assert (found.unseen, round(found.scanned_chars / len(text), 1)) == (("time",), 0.5)


class TestThresholds:
    def test_each_type_has_its_own(self, gateway, engine, acme_admin_key):
        r = gateway.request(
            "PUT",
            "/v1/policy",
            key=acme_admin_key,
            json={
                "threshold": {
                    "engine": 0.5,
                    "content_types": {"tool_output": {"engine": 1.0}, "document": {"fallback": 1}},
                }
            },
        )
        assert r.status_code == 200, r.text

        def threshold(content_type):
            found = gateway.detect(ATTACK, key=acme_admin_key, content_type=content_type).json()
            return found["threshold"], found["decision"]

        assert threshold("user_input") == (0.5, "flag")
        assert threshold("tool_output") == (1.0, "allow")
        assert threshold("document") == (0.5, "flag")
        engine.fails(503)
        assert (
            gateway.detect(f"{ATTACK} 2", key=acme_admin_key, content_type="document").json()[
                "threshold"
            ]
            == 1.0
        )

    def test_an_unknown_type_is_refused(self, gateway, engine, acme_admin_key):
        body = {"threshold": {"content_types": {"tool_outputs": {"engine": 0.5}}}}

        r = gateway.request("PUT", "/v1/policy", key=acme_admin_key, json=body)

        problem(r, 422, "validation_error")


def call(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": "call_1", "type": "function", "function": function}


class TestMessages:
    @pytest.fixture
    def judge(self, gateway, engine, acme_key):
        def judge(*messages, **config):
            body = {"messages": list(messages), **({"config": config} if config else {})}
            return gateway.post(PATH, body, key=acme_key)

        return judge

    @pytest.mark.parametrize(
        ("message", "path"),
        [
            ({"role": "user", "content": ATTACK}, None),
            ({"role": "user", "content": [{"type": "text", "text": ATTACK}]}, None),
            ({"role": "user", "content": [{"type": "input_text", "text": ATTACK}]}, None),
            ({"role": "tool", "tool_call_id": "call_1", "content": ATTACK}, None),
            ({"role": "function", "name": "f", "content": ATTACK}, None),
            ({"role": "tool", "content": json.dumps({"rows": [{"t": ATTACK}]})}, "$.rows[0].t"),
            ({"role": "assistant", "content": ATTACK}, None),
            (
                {"role": "assistant", "content": None, "tool_calls": [call("mail", body=ATTACK)]},
                "$.arguments.body",
            ),
            (
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "text", "text": ATTACK}],
                        }
                    ],
                },
                None,
            ),
            (
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "name": "m", "input": {"to": ATTACK}}],
                },
                "$.input.to",
            ),
        ],
    )
    def test_untrusted_roles_are_judged_and_the_message_is_named(self, judge, message, path):
        fine = {"role": "user", "content": HARMLESS}

        body = judge({"role": "system", "content": "You are kind."}, fine, message).json()

        assert (body["decision"], body["status"]) == ("flag", "complete"), body
        wanted = {"message": 2} if path is None else {"message": 2, "path": path}
        assert body["location"] == wanted

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "user", "content": HARMLESS, "name": ATTACK},
            {"role": "user", "content": HARMLESS, "note": {"deep": [{"er": ATTACK}]}},
            {"role": "user", "content": HARMLESS, "note": {ATTACK: 1}},
            {"role": "user", "content": HARMLESS, "cache_control": {"type": ATTACK}},
            {"role": "assistant", "content": HARMLESS, "reasoning": ATTACK},
            {"role": "assistant", "content": HARMLESS, "reasoning_content": ATTACK},
            {"role": "assistant", "content": None, "refusal": ATTACK},
            {"role": "assistant", "content": None, "function_call": ATTACK},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**call("mail", body=HARMLESS), "note": ATTACK}],
            },
            {"role": "user", "content": [{"type": "text", "text": HARMLESS, "title": ATTACK}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "x", "citations": [{"cited_text": ATTACK}]},
                ],
            },
            {"role": "user", "content": [{"type": ["text"], "text": ATTACK}]},
            *(
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}],
                }
                for content in ({"a": {"b": ATTACK}}, {ATTACK: 1}, [ATTACK], [["x", ATTACK]])
            ),
        ],
        ids=range(16),
    )
    def test_no_string_of_theirs_is_passed_over(self, judge, message):
        body = judge({"role": "user", "content": "Hello."}, message).json()

        assert (body["decision"], body["location"]["message"]) == ("flag", 1)
        assert body["status"] == "complete"

    def test_what_is_said_of_a_sound_is_judged(self, judge):
        audio = {"id": "a", "data": "aGk=", "transcript": ATTACK}

        body = judge({"role": "assistant", "content": None, "audio": audio}).json()

        assert body["decision"] == "flag"
        assert body["coverage"]["unseen"] == [{"reason": "audio", "message": 0}]

    def test_ids_and_words_of_an_api_are_no_texts(self, judge, engine):
        """They would be questions of their own, or in the way of a result that is JSON."""
        result = {
            "role": "tool",
            "tool_call_id": "call_" + "x" * 100,
            "name": "search",
            "status": "success",
            "content": json.dumps({"rows": [HARMLESS]}),
        }
        payload = {
            "role": "assistant",
            "content": [
                {
                    "type": "thinking",
                    "thinking": "Why?",
                    "signature": "c2ln" * 100,
                    "cache_control": {"type": "ephemeral", "ttl": "5m"},
                }
            ],
            "annotations": [],
            "refusal": None,
        }

        assert judge(result, payload).json()["status"] == "complete"
        assert {asked["text"] for asked in engine.asked} == {HARMLESS, "Why?"}

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_trusted_ones_are_not_and_that_is_reported(self, judge, engine, role):
        body = judge({"role": role, "content": ATTACK}, {"role": "user", "content": "Hi"}).json()

        assert (body["decision"], body["status"]) == ("allow", "complete")
        assert body["coverage"]["unseen"] == [{"reason": "trusted_role", "message": 0}]
        assert [asked["text"] for asked in engine.asked] == ["Hi"]

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            ({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}, "picture"),
            ({"type": "image", "source": {"type": "base64", "data": "aGk="}}, "picture"),
            ({"type": "input_audio", "input_audio": {"data": "aGk="}}, "audio"),
            ({"type": "file", "file": {"file_id": "f"}}, "file"),
            ({"type": "hologram", "hologram": "x"}, "not_text"),
            ({"type": "text", "text": 7}, "not_text"),
        ],
    )
    def test_what_is_no_text_is_said_and_reviewed(self, judge, part, reason):
        message = {"role": "user", "content": [{"type": "text", "text": HARMLESS}, part]}

        body = judge(message).json()
        alone = judge({"role": "user", "content": [part]}).json()

        for found in (body, alone):
            assert {"reason": reason, "message": 0} in found["coverage"]["unseen"]
            assert (found["status"], found["decision"]) == ("partial", "review")

    def test_an_attack_is_flagged_beside_a_picture(self, judge):
        message = {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "x"}},
                        {"type": "text", "text": ATTACK}],
        }  # fmt: skip

        assert judge(message).json()["decision"] == "flag"

    def test_one_that_was_judged_is_remembered(self, judge, engine):
        talk = [{"role": "user", "content": f"{HARMLESS} {n}"} for n in range(5)]
        judge(*talk[:4])
        asked = len(engine.asked)

        body = judge(*talk).json()

        assert len(engine.asked) == asked + 1
        assert body["cached"] is False
        assert judge(*talk).json()["cached"] is True

    def test_it_costs_what_one_text_costs(
        self, judge, gateway, engine, acme_key, counted, monkeypatch
    ):
        from detection.engines import scores
        from gateway_project.core.stores import redis

        talk = [{"role": "user", "content": f"{HARMLESS} {n}"} for n in range(20)]
        first = judge(*talk)
        monkeypatch.setattr(scores, "keep", lambda *_: None)

        async def ping():
            await redis.connection().submit(redis.pack("PING"))

        gateway.run(ping())  # behind what the first one has kept
        counted.sql = counted.hops = 0
        before = redis.connection().round_trips

        again = judge(*talk, {"role": "user", "content": "One more."})

        assert (counted.sql, counted.hops) == (0, 0)
        assert redis.connection().round_trips - before == 1
        left = [r.headers["ratelimit"].split('"day";r=')[1].split(";")[0] for r in (first, again)]
        assert int(left[0]) - int(left[1]) == 1

    def test_a_hundred_messages_are_at_most_32_questions(self, judge, engine):
        talk = [
            {"role": ("user", "assistant")[n % 2], "content": f"Number {n}."} for n in range(100)
        ]
        talk[10]["content"] = ATTACK

        body = judge(*talk).json()

        assert len(engine.asked) <= 32 + 8
        assert (body["decision"], body["location"]["message"]) == ("flag", 10)

    def test_the_worst_is_what_the_answer_is_about(self, judge, gateway, acme_key):
        policies.save(
            acme_key.row,
            {"threshold": {"content_types": {"user_input": {"engine": 1.0}}}},
            actor=Actor("test"),
        )
        body = judge(
            {"role": "user", "content": ATTACK}, {"role": "tool", "content": f"{ATTACK} again"}
        ).json()

        assert (body["location"]["message"], body["threshold"]) == (1, 0.6)

    @pytest.mark.parametrize(
        ("body", "field", "says"),
        [
            ({}, "text", "or messages"),
            ({"text": "x", "messages": [{"role": "user", "content": "x"}]}, "text", "not both"),
            ({"messages": []}, "messages", ""),
            ({"messages": [{"role": "user", "content": "x"}] * 101}, "messages", "100"),
            ({"messages": [{"role": "user", "content": "x" * 10_001}]}, "messages", "10,000"),
            (
                {"messages": [{"role": "system", "content": "x" * 6_000},
                              {"role": "user", "content": "x" * 6_000}]},
                "messages", "10,000",
            ),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages", "trusted"),
            ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role", ""),
            ({"messages": [{"content": "x"}]}, "messages.0.role", ""),
            ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", ""),
            ({"messages": [{"role": "user", "content": "\x00" * 50}]}, "messages", "NUL"),
            ({"messages": "x"}, "messages", ""),
        ],
    )  # fmt: skip
    def test_mistakes_are_named(self, gateway, engine, acme_key, body, field, says):
        r = gateway.post(PATH, body, key=acme_key)

        problem(r, 422, "validation_error")
        found = r.json()["errors"]
        assert any(one["field"].startswith(field) and says in one["message"] for one in found), (
            found
        )
        assert engine.asked == []

    def test_they_are_stored_where_texts_are(self, judge, gateway, acme_key):
        policies.save(acme_key.row, {"store_text": True}, actor=Actor("test"))
        judge({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."})
        gateway.flush_usage()

        [row] = StoredText.objects.all()
        assert encryption.decrypt(row.encrypted) == "system: Be kind.\n\nuser: Hello."

    def test_async_takes_a_text_alone(self, gateway, engine, acme_key):
        body = {"messages": [{"role": "user", "content": "x"}], "webhook_url": "https://a.example"}

        problem(gateway.post(f"{PATH}/async", body, key=acme_key), 422, "validation_error")
