"""net: sockets only.

For the roles that talk to the outside: gateways, the name server, the coordinator; and for the client.
Enters: accepting, reading, writing, connecting without ever blocking, on a reactor that is handed in.
Touches sockets and the clock; knows frames, but not what a command means.
"""
