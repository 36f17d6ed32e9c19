"""client: producers and consumers, for our brokers (RocketMQ TCP, ZeroMQ) and for RocketMQ's own.

A pure core (routes, latency, balance, window, batching, and procedures: coroutines that await effects), links
that are plain sockets, and two faces: threads (`Producer`, `Consumer`) and asyncio (`AsyncProducer`, …).
Imports nothing of the broker's insides.
"""
