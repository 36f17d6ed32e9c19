"""client: producers and consumers, for our brokers (RocketMQ TCP, ZeroMQ) and for RocketMQ's own.

A pure core (routes, latency, balance, window, batching, and procedures: coroutines that await effects), links
that are plain sockets, and two faces: threads (`Producer`, `Consumer`) and asyncio (`AsyncProducer`, …).
Imports nothing of the broker's insides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actormq.client.aio import AsyncClient as AsyncClient
    from actormq.client.aio import connect as connect
    from actormq.client.aio_consumer import AsyncConsumer as AsyncConsumer
    from actormq.client.aio_producer import AsyncProducer as AsyncProducer
    from actormq.client.batching import BatchLimits as BatchLimits
    from actormq.client.client import Client as Client
    from actormq.client.client import connect_sync as connect_sync
    from actormq.client.consumer import Consumer as Consumer
    from actormq.client.futures import SendFuture as SendFuture
    from actormq.client.messages import Message as Message
    from actormq.client.producer import Producer as Producer
    from actormq.client.received import ReceivedMessage as ReceivedMessage
    from actormq.client.results import ConsumeResult as ConsumeResult
    from actormq.client.results import MessageModel as MessageModel
    from actormq.client.results import MessageQueue as MessageQueue
    from actormq.client.results import RetryLater as RetryLater
    from actormq.client.results import SendResult as SendResult
    from actormq.client.results import StartFrom as StartFrom
    from actormq.client.settings import ClientSettings as ClientSettings
    from actormq.client.settings import ConsumerSettings as ConsumerSettings
    from actormq.client.settings import ProducerSettings as ProducerSettings
    from actormq.client.streams import Delivered as Delivered
    from actormq.client.window import WindowLimits as WindowLimits
    from actormq.message import SendStatus as SendStatus

# Loaded when first asked for: a command that only sends needs neither asyncio nor ZeroMQ.
_HOMES = {
    "AsyncClient": "actormq.client.aio",
    "connect": "actormq.client.aio",
    "AsyncConsumer": "actormq.client.aio_consumer",
    "AsyncProducer": "actormq.client.aio_producer",
    "BatchLimits": "actormq.client.batching",
    "Client": "actormq.client.client",
    "connect_sync": "actormq.client.client",
    "Consumer": "actormq.client.consumer",
    "SendFuture": "actormq.client.futures",
    "Message": "actormq.client.messages",
    "ReceivedMessage": "actormq.client.received",
    "Producer": "actormq.client.producer",
    "ConsumeResult": "actormq.client.results",
    "MessageModel": "actormq.client.results",
    "MessageQueue": "actormq.client.results",
    "RetryLater": "actormq.client.results",
    "SendResult": "actormq.client.results",
    "StartFrom": "actormq.client.results",
    "ClientSettings": "actormq.client.settings",
    "ConsumerSettings": "actormq.client.settings",
    "ProducerSettings": "actormq.client.settings",
    "Delivered": "actormq.client.streams",
    "WindowLimits": "actormq.client.window",
    "SendStatus": "actormq.message",
}

__all__ = [
    "AsyncClient",
    "AsyncConsumer",
    "AsyncProducer",
    "BatchLimits",
    "Client",
    "ClientSettings",
    "ConsumeResult",
    "Consumer",
    "ConsumerSettings",
    "Delivered",
    "Message",
    "MessageModel",
    "MessageQueue",
    "Producer",
    "ProducerSettings",
    "ReceivedMessage",
    "RetryLater",
    "SendFuture",
    "SendResult",
    "SendStatus",
    "StartFrom",
    "WindowLimits",
    "connect",
    "connect_sync",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
