"""loadtest: what one does to a whole broker from outside: the demo, and the measurements.

May import the client, the wire format and the command line's way to ask a server; never a role or the store.
Servers and clients run as processes of their own, as users would run them; every one is ended by its id.
"""
