"""Exit statuses of a role and of the supervisor.  Source: sysexits.h for the numbers that it has."""

from __future__ import annotations

from typing import Final

EXIT_UNCLEAN: Final = 1
"""Stopped, but not everything ended well; the next start recovers."""
EXIT_BUG: Final = 70
"""A role met an unknown error; the traceback is in the log."""
EXIT_CRASH_LOOP: Final = 71
"""A role died again and again."""
EXIT_STORE_FAILED: Final = 74
"""A write or sync of the store failed: nobody is restarted."""
EXIT_REFUSED: Final = 78
"""A setting, a folder or a port makes starting impossible; one sentence is in the log."""
