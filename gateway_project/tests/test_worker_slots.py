"""A worker whose Redis was away for a moment takes messages as before."""

from __future__ import annotations

import pytest
from kombu import Connection
from kombu.transport import redis

from gateway_project.worker import slots


@pytest.fixture
def queue(monkeypatch, own_redis):
    monkeypatch.setattr(redis.Channel, "QoS", redis.Channel.QoS)  # Celery's own again at the end
    slots.give_back()
    options = {"socket_timeout": 0.5, "max_retries": 1, "interval_start": 0}
    with (
        Connection(own_redis.url, transport_options=options) as connection,
        connection.SimpleQueue("places") as queue,
    ):
        queue.channel.basic_qos(0, 1, False)  # one message at once
        yield queue
        own_redis.stop()
        own_redis.start()  # what is left over goes back into it


@pytest.mark.hostile
@pytest.mark.parametrize("end", ["ack", "reject"])
@pytest.mark.parametrize("trouble", ["stop", "freeze"])
def test_one_that_could_not_be_acknowledged_gives_its_place_back(queue, own_redis, end, trouble):
    queue.put("hello")
    message = queue.get(timeout=5)
    assert not queue.channel.qos.can_consume()

    getattr(own_redis, trouble)()
    getattr(message, end)()

    assert queue.channel.qos.can_consume()


def test_one_that_could_be_is_gone_from_redis(queue, own_redis):
    queue.put("hello")

    queue.get(timeout=5).ack()

    assert queue.channel.qos.can_consume()
    with own_redis.client as client:
        assert not client.hlen("unacked")
