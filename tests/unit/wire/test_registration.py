"""REGISTER_BROKER's body, plain and compressed."""

from __future__ import annotations

import zlib

import pytest

from actormq.errors import FrameError
from actormq.wire import registration
from actormq.wire.registration import (
    DataVersion,
    RegistrationBody,
    TopicConfig,
    decode_registration,
    encode_registration,
)


def sized(*items: bytes) -> bytes:
    return b"".join(len(item).to_bytes(4, "big") + item for item in items)


def compressed(topics: list[bytes], tail: bytes = b"") -> bytes:
    head = sized(b'{"counter":3,"stateVersion":2,"timestamp":1}') + len(topics).to_bytes(4, "big")
    return zlib.compress(head + sized(*topics) + sized(b'["f:1"]') + tail)


def test_what_is_encoded_is_decoded() -> None:
    """Topics, version, filter servers and mappings survive."""
    body = RegistrationBody(
        version=DataVersion(1, 2, 3),
        topics=(TopicConfig(name="T", read_queues=1, write_queues=2, permission=4, sys_flag=3),),
        filter_servers=("f:1",),
        mappings={"S": {"topic": "S", "bname": "a"}},
    )
    assert decode_registration(encode_registration(body), 479) == body


def test_unquoted_keys_and_missing_fields_are_read() -> None:
    """fastjson's shapes, a 4.9 broker's version without stateVersion, defaults of TopicConfig."""
    text = (
        b'{"topicConfigSerializeWrapper":{"dataVersion":{"counter":3,"timestamp":2},"topicConfigTable":{'
        b'"T":{"topicName":"T","attributes":{}}},"topicQueueMappingDetailMap":{"S":{"hostedQueues":{0:[]}}}}}'
    )
    body = decode_registration(text, 409)
    assert body.version == DataVersion(0, 2, 3)
    assert body.topics == (TopicConfig(name="T", read_queues=16, write_queues=16, permission=6),)


def test_old_brokers_send_the_wrapper_alone() -> None:
    """Before 3.0.11 there were no filter servers, and no outer object."""
    body = decode_registration(b'{"dataVersion":{"counter":1},"topicConfigTable":{"T":{}}}', 10)
    assert [topic.name for topic in body.topics] == ["T"]


def test_no_body_is_a_registration_without_topics() -> None:
    """As RocketMQ takes it: version zero."""
    assert decode_registration(b"", 479) == RegistrationBody()


def test_the_compressed_form() -> None:
    """Topic texts with and without attributes; mappings only from 5.0.0 on."""
    topics = [b"T 4 3 6 SINGLE_TAG", b'U 1 1 4 MULTI_TAG {"message.type":"FIFO"}']
    mappings = (1).to_bytes(4, "big") + sized(b'{"topic":"S","bname":"a","currIdMap":{0:1}}')
    for version, tail in ((479, mappings), (409, b"")):
        body = decode_registration(compressed(topics, tail), version)
        assert body.version == DataVersion(2, 1, 3)
        assert body.topics == (
            TopicConfig(name="T", read_queues=4, write_queues=3, permission=6),
            TopicConfig(name="U", read_queues=1, write_queues=1, permission=4),
        )
        assert body.filter_servers == ("f:1",)
        assert list(body.mappings) == (["S"] if tail else [])


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"topicConfigSerializeWrapper":{"topicConfigTable":[]}}',
        b'{"topicConfigSerializeWrapper":{"topicConfigTable":{"T":{"perm":"6"}}}}',
        zlib.compress(b""),
        zlib.compress(b"\xff\xff\xff\xff"),
        zlib.compress(sized(b"{}") + b"\x7f\xff\xff\xff"),
        compressed([b"T 4"]),
        compressed([b"T"])[:-5],
        b"\x78nonsense",
    ],
)
def test_bytes_that_say_nothing_are_refused(body: bytes) -> None:
    """Wrong types, lengths beyond the end, cut or broken compression."""
    with pytest.raises(FrameError):
        decode_registration(body, 479)


def test_a_body_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small frame cannot fill the memory."""
    monkeypatch.setattr(registration, "BODY_BYTES_MAX", 10_000)
    with pytest.raises(FrameError, match="too big"):
        decode_registration(zlib.compress(bytes(20_000)), 479)
