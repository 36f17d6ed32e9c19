"""client: producers and consumers, for our brokers (RocketMQ TCP, ZeroMQ) and for RocketMQ's own.

A pure core (routes, latency, balance, window, batching, and procedures: coroutines that await effects), links
that are plain sockets, and two faces: threads (`Producer`, `Consumer`) and asyncio (`AsyncProducer`, …).
Imports nothing of the broker's insides.
"""

from actormq.client.aio import AsyncClient, connect
from actormq.client.aio_consumer import AsyncConsumer
from actormq.client.aio_producer import AsyncProducer
from actormq.client.batching import BatchLimits
from actormq.client.client import Client, connect_sync
from actormq.client.consumer import Consumer
from actormq.client.futures import SendFuture
from actormq.client.messages import Message, ReceivedMessage
from actormq.client.producer import Producer
from actormq.client.results import (
    ConsumeResult,
    MessageModel,
    MessageQueue,
    RetryLater,
    SendResult,
    StartFrom,
)
from actormq.client.settings import ClientSettings, ConsumerSettings, ProducerSettings
from actormq.client.streams import Delivered
from actormq.client.window import WindowLimits
from actormq.message import SendStatus

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
