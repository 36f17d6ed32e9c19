"""The log: lines with role and fields, a pipe that never blocks a role, one end for all."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from actormq.telemetry.log import LINE_BYTES_MAX, LineFormatter, LogSink, PipeHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def logger_on(fd: int) -> logging.Logger:
    handler = PipeHandler(fd)
    handler.setFormatter(LineFormatter("writer"))
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(handler)
    return logger


def test_line_says_when_who_what_and_fields(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logger_on(writer).info("segment rolled", extra={"log_offset": 1024, "file": "x"})
    line = os.read(reader, 9999).decode()
    expected = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} INFO writer\[{os.getpid()}\] segment rolled"
    assert re.fullmatch(expected + r" log_offset=1024 file=x\n", line)


def test_what_a_peer_says_stays_in_one_line(pipe: tuple[int, int]) -> None:
    """Neither a line of its own nor a command for the terminal that shows it."""
    reader, writer = pipe
    logger_on(writer).info("broker %s gone", "a\nb\x1b[2J", extra={"cluster": "c\r\u2028d ü"})
    (line,) = os.read(reader, 9999).decode().splitlines()
    assert line.endswith(r"broker a\nb\x1b[2J gone cluster=c\r\u2028d ü")


def test_traceback_is_lines_of_the_same_role(pipe: tuple[int, int]) -> None:
    """Each line of it names the role, so that two roles' tracebacks can be told apart."""
    reader, writer = pipe
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger_on(writer).critical("died", exc_info=True)
    lines = os.read(reader, 99_999).decode().splitlines()
    assert len(lines) > 4
    assert all(f"CRITICAL writer[{os.getpid()}] " in line for line in lines)
    assert "ValueError: two" in lines[-2]


def test_long_line_is_cut_to_what_a_pipe_takes_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logger_on(writer).info("x" * 10_000)
    assert len(os.read(reader, 99_999)) == LINE_BYTES_MAX


def test_full_pipe_drops_and_says_how_many(pipe: tuple[int, int]) -> None:
    """Nobody reads: info lines return at once and are dropped; the next line that fits has their number."""
    reader, writer = pipe
    logger = logger_on(writer)
    for number in range(100):
        logger.info("y" * 2_000 + f" {number}")
    written = 0
    while True:
        try:
            written += os.read(reader, 65_536).count(b"\n")
        except BlockingIOError:
            break
    assert written < 100
    logger.info("room again")
    assert f"dropped_lines={100 - written}" in os.read(reader, 9999).decode()


def test_dead_supervisor_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    logger_on(writer).critical("nobody hears")
    os.close(writer)


def test_sink_writes_whole_lines_however_they_arrive() -> None:
    """Pieces of lines of the pipe become lines; our own lines come between, never inside."""
    out = io.StringIO()
    sink = LogSink(None, out)
    sink.feed(b"first half, ")
    sink.logger.info("ours", extra={"n": 1})
    sink.feed(b"second half\nanother\nunfinished")
    sink.close()
    lines = out.getvalue().splitlines()
    assert lines[0].endswith(f"INFO supervisor[{os.getpid()}] ours n=1")
    assert lines[1:] == ["first half, second half", "another", "unfinished"]


def test_percent_signs_are_text() -> None:
    """A role's line is written as it came, whatever it looks like."""
    out = io.StringIO()
    sink = LogSink(None, out)
    sink.feed(b"100 %s %d {x}\n")
    assert out.getvalue() == "100 %s %d {x}\n"


def test_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the file moves to .1, and the log goes on."""
    monkeypatch.setattr("actormq.telemetry.log.ROTATE_BYTES", 200)
    sink = LogSink(tmp_path / "new/broker.log")
    for number in range(10):
        sink.feed(b"%030d\n" % number)
    sink.close()
    assert (tmp_path / "new/broker.log.1").exists()
    assert (tmp_path / "new/broker.log").read_text().splitlines()[-1] == f"{9:030d}"


def test_adopted_loggers_end_in_the_same_log() -> None:
    """What a module of this process logs by `logging` comes out of the sink, until that is ended."""
    out = io.StringIO()
    sink = LogSink(None, out)
    end = sink.adopt("actormq.test_adopted")
    logging.getLogger("actormq.test_adopted").warning("from a module")
    end()
    logging.getLogger("actormq.test_adopted").propagate = False
    logging.getLogger("actormq.test_adopted").warning("too late")
    assert out.getvalue().count("\n") == 1


def test_reader_who_sleeps_stops_nobody() -> None:
    """stderr is a pipe that nobody reads: lines are dropped, and their number is said where it goes on."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", buffering=0) as source:
        sink = LogSink(None, stream)
        for number in range(200):
            sink.feed(b"%04d" % number + b"z" * 1_000 + b"\n")
        lines = source.read(1 << 20).splitlines()
        assert 0 < len(lines) < 200
        sink.feed(b"again\n")
        sink.close()
        assert source.read(1 << 20).splitlines() == [
            b"(%d lines were dropped here)" % (200 - len(lines)),
            b"again",
        ]
