"""wire: bytes to commands and back.

For every front (RocketMQ TCP, ZeroMQ, later gRPC and shared memory) and for the client.
Enters: what has a byte format on a connection: frames, headers, batch bodies, RocketMQ's JSON.
Touches nothing: no socket, no clock, no file; garbage from a peer raises `FrameError` and nothing else.
"""
