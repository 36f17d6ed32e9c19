"""store_text: what `actormq store` tells of a store, in words and tables or as values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actormq.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from actormq.store.tools.cutting import Cut
    from actormq.store.tools.inspecting import Facts
    from actormq.store.tools.rebuilding import Rebuilt
    from actormq.store.tools.report import Finding
    from actormq.store.tools.verifying import Verdict


def as_json_value(value: Any) -> Any:
    """Return `value` as JSON has it: paths as texts, the queues of an end mark counted."""
    if isinstance(value, dict):
        if "first_file_entry" in value:
            return [value["min"], value["max"]]
        return {
            "/".join(map(str, key)) if isinstance(key, tuple) else key: as_json_value(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [as_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def show_facts(facts: Facts, running: list[int]) -> None:
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


def verdict_value(verdict: Verdict) -> dict[str, Any]:
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


def show_verdict(verdict: Verdict) -> None:
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


def show_cut(cut: Cut, kept: Path | None) -> None:
    print(
        f"cut: log offsets {cut.log_offset} to {cut.log_end}, {cut.records} records, {len(cut.files)} whole "
        f"files, stored {_time(cut.first_store_timestamp)} to {_time(cut.last_store_timestamp)}"
    )
    rows = [(topic, queue_id, count) for (topic, queue_id), count in sorted(cut.queues.items())]
    print_table(("topic", "queue", "messages"), rows)
    if kept is not None:
        print(f"kept in {kept}")


def show_rebuilt(done: Rebuilt, as_json: bool) -> None:
    """Tell what was made anew."""
    if as_json:
        print_json({**asdict(done), "queues": len(done.queues)})
        return
    for start, until in done.passed_over:
        say(f"passed over damage in the log, offsets {start} to {until}")
    print(f"{done.messages} messages in {len(done.queues)} queues, {done.keys} keys, up to {done.log_end}")
