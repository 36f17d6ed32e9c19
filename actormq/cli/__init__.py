"""The command line: `actormq NOUN …`, one file per noun; `settings` reads files, environment and flags.

May enter: whatever a person or a unit file says.  May import everything; nothing imports it.
`main` keeps the way to `dev`, `broker` and `namesrv` light: their processes live long, and start often.
"""
