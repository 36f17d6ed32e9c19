"""The rules of RocketMQ that are neither bytes nor processes: what is allowed, what follows.

May enter: pure code only: no socket, file, clock, environment or log; time comes in as ``now_ms``, chance
as a `random.Random`.  May import `actormq.message`, `config`, `errors`, `wire` and `store`'s pure parts.
Roles (`actormq.actors`) hold these classes and carry out what they return.
"""
