"""store: looks at a store's files, ours or RocketMQ's; what changes something wants the broker to be gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from actormq.cli.main import EXIT_FAILED
from actormq.cli.options import Json, examples
from actormq.cli.output import print_json, print_table, say
from actormq.cli.progress import progress_bar
from actormq.errors import ConfigError, StoreForeign

if TYPE_CHECKING:
    from actormq.store.tools.inspecting import Facts
    from actormq.store.tools.layout import Layout
    from actormq.store.tools.report import Finding
    from actormq.store.tools.verifying import Verdict

app = typer.Typer()

DELAY_LEVELS: Final = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"

Store: TypeAlias = Annotated[Path, typer.Argument(help="The store's folder.", metavar="STORE")]
LogFileBytes: TypeAlias = Annotated[
    int, typer.Option("--log-file-bytes", help="Size of a log file, where its files do not tell.")
]
QueueFileEntries: TypeAlias = Annotated[
    int, typer.Option("--queue-file-entries", help="Entries of a queue file, where its files do not tell.")
]
IndexSlots: TypeAlias = Annotated[
    int, typer.Option("--index-slots", help="Slots of an index file, where its files do not tell.")
]
IndexEntries: TypeAlias = Annotated[
    int, typer.Option("--index-entries", help="Entries of an index file, where its files do not tell.")
]


@contextmanager
def unreadable_is_usage() -> Iterator[None]:
    """Make of a folder that is no store, or cannot be read, wrong usage: exit code 1 means damage."""
    try:
        yield
    except StoreForeign as error:
        raise ConfigError(error.remark) from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None


def layout_of(store: Path, log_bytes: int, queue_entries: int, slots: int, entries: int) -> Layout:
    """Return the store's sizes; what was said wins over what its files tell."""
    from actormq.store.disk import RealDisk
    from actormq.store.tools.layout import Sizes, find_layout

    given = Sizes(
        log_file_bytes=log_bytes, queue_file_entries=queue_entries, index_slots=slots, index_entries=entries
    )
    return find_layout(RealDisk(), store.absolute(), given)


@app.command(epilog=examples("store inspect /var/lib/actormq/broker-a", "store inspect ~/store --json"))
def inspect(
    store: Store,
    log_file_bytes: LogFileBytes = 0,
    queue_file_entries: QueueFileEntries = 0,
    index_slots: IndexSlots = 0,
    index_entries: IndexEntries = 0,
    as_json: Json = False,
) -> None:
    """Say what a store has: files, offsets, times, messages of each queue, checkpoint, tables."""
    from actormq.actors.storelock import owners
    from actormq.store.disk import RealDisk
    from actormq.store.tools import inspecting

    with unreadable_is_usage():
        layout = layout_of(store, log_file_bytes, queue_file_entries, index_slots, index_entries)
        facts = inspecting.inspect(RealDisk(), layout)
    running = owners(layout.root)
    if as_json:
        print_json({**_json(asdict(facts)), "running": running})
    else:
        _show_facts(facts, running)


def _json(value: Any) -> Any:
    """Return `value` as JSON has it: paths as texts, the queues of an end mark counted."""
    if isinstance(value, dict):
        if "first_file_entry" in value:
            return [value["min"], value["max"]]
        return {
            "/".join(map(str, key)) if isinstance(key, tuple) else key: _json(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _show_facts(facts: Facts, running: list[int]) -> None:
    log = facts.log
    state = "stopped cleanly" if facts.abort is None else "killed, or at work"
    if running:
        state = f"at work (process {', '.join(map(str, running))})"
    rows = [
        ("store", f"{facts.layout.root}, {state}"),
        ("log", f"{log.files} files of {facts.layout.log_file_bytes} bytes, offsets {log.min} to {log.end}"),
        ("stored", f"{_time(log.first_store_timestamp)} to {_time(log.last_store_timestamp)}"),
        ("queues", f"{len(facts.queues)} of {len({queue.topic for queue in facts.queues})} topics"),
        ("index", f"{len(facts.index)} files, {sum(file.entries for file in facts.index)} keys"),
        ("checkpoint", _checkpoint_text(facts)),
    ]
    print_table(("", ""), rows)
    for complaint in log.complaints:
        say(complaint)
    queues = [(each.topic, each.queue_id, each.min, each.max, each.max - each.min) for each in facts.queues]
    print_table(("topic", "queue", "min", "max", "messages"), queues)
    tables = [
        (each.name, each.bytes, each.entries, (each.version or {}).get("counter"), each.trouble or "")
        for each in facts.tables
    ]
    print_table(("table", "bytes", "entries", "version", ""), tables)
    if facts.others:
        say(f"not looked at: {', '.join(facts.others)}")


def _checkpoint_text(facts: Facts) -> str:
    known = facts.checkpoint
    if known.ours:
        return f"log {known.log_flushed}, queues {known.queues_flushed}, index {known.index_flushed}"
    return f"log {_time(known.log_timestamp)}, queues {_time(known.queues_timestamp)} (RocketMQ's)"


def _time(timestamp_ms: int) -> str:
    if not timestamp_ms:
        return "never"
    return datetime.fromtimestamp(timestamp_ms / 1000).isoformat(" ", "milliseconds")


@app.command(epilog=examples("store verify /var/lib/actormq/broker-a", "store verify ~/store --json"))
def verify(
    store: Store,
    delay_levels: Annotated[
        str, typer.Option("--delay-levels", help="The broker's delay levels, where they are not the default.")
    ] = DELAY_LEVELS,
    findings_max: Annotated[
        int, typer.Option("--findings", min=1, help="Describe so many; all are counted.")
    ] = 100,
    log_file_bytes: LogFileBytes = 0,
    queue_file_entries: QueueFileEntries = 0,
    index_slots: IndexSlots = 0,
    index_entries: IndexEntries = 0,
    as_json: Json = False,
) -> None:
    """Look for damage: every record, and log against queues, index and offsets; changes nothing.

    Exit code 0: whole; 1: damaged; 2: no store, or not readable.
    """
    from actormq.broker.delay import DelayLevels
    from actormq.store.disk import RealDisk
    from actormq.store.tools import verifying

    with unreadable_is_usage(), progress_bar("verify") as progress:
        layout = layout_of(store, log_file_bytes, queue_file_entries, index_slots, index_entries)
        verdict = verifying.verify(
            RealDisk(),
            layout,
            delay_ms=list(DelayLevels(delay_levels).delays_ms),
            progress=progress,
            findings_max=findings_max,
        )
    if as_json:
        print_json(_verdict_json(verdict))
    else:
        _show_verdict(verdict)
    if not verdict.whole:
        raise typer.Exit(EXIT_FAILED)


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    topics: dict[str, dict[str, int]] = {}
    for (topic, queue_id), count in sorted(verdict.queues.items()):
        topics.setdefault(topic, {})[str(queue_id)] = count
    return {
        "whole": verdict.whole,
        "clean": verdict.trust.clean,
        "log": {
            "files": verdict.log_files,
            "min": verdict.log_min,
            "end": verdict.log_end,
            "records": verdict.records,
            "last_store_timestamp": verdict.last_store_timestamp,
        },
        "topics": topics,
        "index_entries": verdict.index_entries,
        "waiting": {name: count for name, count in verdict.waiting.items() if count},
        "damage": dict(verdict.report.counts),
        "findings": [asdict(finding) for finding in verdict.report.findings],
    }


def _show_verdict(verdict: Verdict) -> None:
    print(
        f"log {verdict.log_min} to {verdict.log_end} in {verdict.log_files} files: "
        f"{verdict.records} records, {len(verdict.queues)} queues, {verdict.index_entries} index entries"
    )
    for name, count in verdict.waiting.items():
        if count:
            print(f"still to be done by the broker, or at its next start: {count} {name}")
    for finding in verdict.report.findings:
        print(_sentence(finding))
    if verdict.whole:
        print("whole")
    else:
        print("damaged: " + ", ".join(f"{count} {kind}" for kind, count in verdict.report.counts.items()))


def _sentence(finding: Finding) -> str:
    place = f" at log offset {finding.log_offset}" if finding.log_offset is not None else ""
    whose = ""
    if finding.topic is not None:
        whose = f" ({finding.topic}, queue {finding.queue_id}"
        whose += f", offset {finding.queue_offset})" if finding.queue_offset is not None else ")"
    times = f", {finding.count} times" if finding.count > 1 else ""
    return f"{finding.kind}: {finding.file}{place}{whose}: {finding.what}{times}"
