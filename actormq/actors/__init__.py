"""The roles of a broker: one file, one process, one name in ``ps`` each, and what runs them.

`supervisor` decides who is to live, on its `premises`, by its `nursery` and `forkserver`; `control` is the
line between it and a role; `entry`, `context`, `loop`, `mailbox` and `runtime` are what a role runs in.
May enter: everything below (``shm net telemetry`` and the pure rooms).  Never imported by ``client``.
"""
