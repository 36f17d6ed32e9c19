"""One log per broker: roles write lines into a pipe, the supervisor writes them where they belong.

A line says when, how bad, which role and process, what happened, and its fields as ``key=value``.
A role never waits long for its log: a full pipe drops lines (and says how many, later); warnings and
worse wait up to 200 ms, since a death's traceback is worth that.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

LINE_BYTES_MAX: Final = 4096
"""PIPE_BUF on Linux: up to here a write is whole, whoever else writes."""
ROTATE_BYTES: Final = 64 * 1024 * 1024
ROTATE_COUNT: Final = 10
_URGENT_WAIT_MS: Final = 200
_SINK_WAIT_MS: Final = 50
_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """``2024-05-01 12:00:00.123 INFO writer[4711] segment rolled log_offset=1073741824``."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._who = f"{role}[{os.getpid()}]"

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in vars(record).items() if key not in _PLAIN)
        head = f"{stamp}.{int(record.msecs):03d} {record.levelname} {self._who} "
        lines = [_printable(record.getMessage() + fields)]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return "\n".join(head + line for line in lines)


def _printable(text: str) -> str:
    """Return `text` as one line: peers choose names, and must not choose lines of our log."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PipeHandler(logging.Handler):
    """Writes to the supervisor's pipe, whole lines, without waiting."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        os.set_blocking(fd, False)
        self._fd = fd
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        urgent = record.levelno >= logging.WARNING
        if self._dropped:
            record.dropped_lines = self._dropped
        for line in self.format(record).splitlines():
            data = line.encode("utf-8", "replace")[: LINE_BYTES_MAX - 1] + b"\n"
            if not self._write(data, urgent):
                self._dropped += 1
                return
        self._dropped = 0

    def _write(self, data: bytes, urgent: bool) -> bool:
        for wait_ms in (_URGENT_WAIT_MS if urgent else 0, None):
            try:
                os.write(self._fd, data)
                return True
            except BlockingIOError:
                if not wait_ms or not self._writable(wait_ms):
                    return False
            except BrokenPipeError:
                return False  # the supervisor is gone; the lifeline will say so
        return False

    def _writable(self, wait_ms: int) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(wait_ms))


def role_logger(role: str, fd: int) -> logging.Logger:
    """Return the logger of a role in its own process, writing to the supervisor's pipe `fd`."""
    handler = PipeHandler(fd)
    handler.setFormatter(LineFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries
    logger = logging.getLogger("actormq")
    logger.setLevel(logging.INFO)
    return logger


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Writes to a terminal or pipe; drops lines when nobody reads: the supervisor must not stop for it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._full():
            self._dropped += 1
            return
        if self._dropped:
            self.stream.write(f"({self._dropped} lines were dropped here)\n")
            self._dropped = 0
        super().emit(record)

    def _full(self) -> bool:
        """Whether a line would block: a pipe that polls writable takes at least 4096 bytes."""
        try:
            fd = self.stream.fileno()
        except (OSError, ValueError):
            return False  # a stream in memory takes everything
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        return not poller.poll(0 if self._dropped else _SINK_WAIT_MS)


class LogSink:
    """Where the lines end: a rotated file, or stderr.  The supervisor's own lines come in by `logger`."""

    def __init__(self, path: Path | None, stream: TextIO | None = None, role: str = "supervisor") -> None:
        self._handler: logging.Handler = _file_handler(path) if path else _StreamHandler(stream or sys.stderr)
        self._partial = b""
        self.logger = logging.Logger("actormq.supervisor", logging.INFO)
        formatter = LineFormatter(role)
        self._handler.setFormatter(formatter)
        self.logger.addHandler(self._handler)
        self._handler.format = self._format  # type: ignore[method-assign]
        self._formatter = formatter

    def _format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.name == "" else self._formatter.format(record)

    def adopt(self, name: str) -> Callable[[], None]:
        """Take what this process logs under `name`, too; the returned call ends that."""
        logger = logging.getLogger(name)
        logger.addHandler(self._handler)
        return lambda: logger.removeHandler(self._handler)

    def feed(self, data: bytes) -> None:
        """Take what came out of the pipe; whole lines are written, the rest waits for its end."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            record = logging.makeLogRecord({"msg": line.decode("utf-8", "replace"), "levelno": logging.INFO})
            record.name = ""
            self._handler.handle(record)

    def close(self) -> None:
        if self._partial:
            self.feed(b"\n")
        self._handler.flush()
        self._handler.close()


def _file_handler(path: Path) -> logging.Handler:
    from logging.handlers import RotatingFileHandler  # imports much: only where a file is asked for

    path.parent.mkdir(parents=True, exist_ok=True)
    return RotatingFileHandler(path, maxBytes=ROTATE_BYTES, backupCount=ROTATE_COUNT, encoding="utf-8")
