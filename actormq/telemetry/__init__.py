"""What a broker says about itself: the one log, and counters that any process can read.

May enter: settings, errors, clock and the positions page.  `log` touches one descriptor and `logging`;
`counters` only shared memory.
"""
