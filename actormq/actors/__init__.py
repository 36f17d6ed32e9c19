"""The roles of a broker: one file, one process, one name in ``ps`` each, and what runs them.

`supervisor` starts and watches; `forkserver` makes their processes; `control` is the line between
a role and the supervisor; `loop`, `mailbox` and `runtime` are what a role runs in; the rest are roles.
May enter: everything below (``shm net telemetry`` and the pure rooms).  Never imported by ``client``.
"""
