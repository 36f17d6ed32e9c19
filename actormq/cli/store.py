"""store: looks at a store's files, ours or RocketMQ's; what changes something wants the broker to be gone."""

from __future__ import annotations

import functools
import inspect as inspection
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, get_type_hints

import typer

from actormq.cli.main import EXIT_FAILED
from actormq.cli.options import Json, examples
from actormq.cli.output import print_json, say
from actormq.cli.progress import progress_bar
from actormq.cli.store_text import (
    as_json_value,
    show_cut,
    show_facts,
    show_rebuilt,
    show_verdict,
    verdict_value,
)
from actormq.errors import ConfigError, StoreError, StoreForeign

if TYPE_CHECKING:
    from actormq.store.tools.layout import Layout

app = typer.Typer()

DELAY_LEVELS: Final = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"

DelayLevels: TypeAlias = Annotated[
    str, typer.Option("--delay-levels", help="The broker's delay levels, where they are not the default.")
]


@contextmanager
def unreadable_is_usage() -> Iterator[None]:
    """Make of a folder that is no store, or cannot be read, wrong usage: exit code 1 means damage.

    Any other trouble with the disk is one sentence, too.
    """
    try:
        yield
    except StoreForeign as error:
        raise ConfigError(error.remark) from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except OSError as error:
        raise StoreError(f"{error.filename or 'the disk'}: {error.strerror}") from None


def readable(
    store: Annotated[Path, typer.Argument(help="The store's folder.", metavar="STORE")],
    log_file_bytes: Annotated[
        int, typer.Option("--log-file-bytes", help="Size of a log file, where its files do not tell.")
    ] = 0,
    queue_file_entries: Annotated[
        int,
        typer.Option("--queue-file-entries", help="Entries of a queue file, where its files do not tell."),
    ] = 0,
    batch_queue_file_entries: Annotated[
        int,
        typer.Option(
            "--batch-queue-file-entries", help="Entries of a batch queue file, where its files do not tell."
        ),
    ] = 0,
    index_slots: Annotated[
        int, typer.Option("--index-slots", help="Slots of an index file, where its files do not tell.")
    ] = 0,
    index_entries: Annotated[
        int, typer.Option("--index-entries", help="Entries of an index file, where its files do not tell.")
    ] = 0,
) -> Layout:
    """Return the store's sizes; what was said wins over what its files tell.  Not readable is wrong usage."""
    from actormq.store.disk import RealDisk
    from actormq.store.tools.layout import Sizes, find_layout

    given = Sizes(
        log_file_bytes=log_file_bytes,
        queue_file_entries=queue_file_entries,
        batch_queue_file_entries=batch_queue_file_entries,
        index_slots=index_slots,
        index_entries=index_entries,
    )
    with unreadable_is_usage():
        return find_layout(RealDisk(), store.absolute(), given)


def _parameters(function: Callable[..., object]) -> list[inspection.Parameter]:
    """Return a function's parameters as Typer wants them; `Layout` is imported when a command runs."""
    hints = get_type_hints(function, localns={"Layout": object}, include_extras=True)
    return [
        each.replace(kind=each.KEYWORD_ONLY, annotation=hints[each.name])
        for each in inspection.signature(function).parameters.values()
    ]


def on_store(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the parameters of `readable` in the place of its first one, the layout.

    Typer makes options of a function's signature, so that is what is put together here.
    """
    store, *sizes = _parameters(readable)
    _, *others = _parameters(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        layout = readable(**{each.name: given.pop(each.name) for each in (store, *sizes)})
        command(layout, **given)

    parameters = [store, *others, *sizes]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspection.Signature(parameters)  # type: ignore[attr-defined]
    return run


@app.command(epilog=examples("store inspect /var/lib/actormq/broker-a", "store inspect ~/store --json"))
@on_store
def inspect(
    layout: Layout,
    as_json: Json = False,
) -> None:
    """Say what a store has: files, offsets, times, messages of each queue, checkpoint, tables."""
    from actormq.actors.storelock import owners
    from actormq.store.disk import RealDisk
    from actormq.store.tools import inspecting

    with unreadable_is_usage():
        facts = inspecting.inspect(RealDisk(), layout)
    running = owners(layout.root)
    if as_json:
        print_json({**as_json_value(asdict(facts)), "running": running})
    else:
        show_facts(facts, running)


@app.command(epilog=examples("store verify /var/lib/actormq/broker-a", "store verify ~/store --json"))
@on_store
def verify(
    layout: Layout,
    delay_levels: DelayLevels = DELAY_LEVELS,
    findings_max: Annotated[
        int, typer.Option("--findings", min=1, help="Describe so many; all are counted.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Look for damage: every record, and log against queues, index and offsets; changes nothing.

    Exit code 0: whole; 1: damaged; 2: no store, or not readable.
    """
    from actormq.broker.delay import DelayLevels as Levels
    from actormq.store.disk import RealDisk
    from actormq.store.tools import verifying

    with unreadable_is_usage(), progress_bar("verify") as progress:
        verdict = verifying.verify(
            RealDisk(),
            layout,
            delay_ms=list(Levels(delay_levels).delays_ms),
            progress=progress,
            findings_max=findings_max,
        )
    if as_json:
        print_json(verdict_value(verdict))
    else:
        show_verdict(verdict)
    if not verdict.whole:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog=examples(
        "store dump ~/store --topic orders --key 4711",
        "store dump ~/store --from 2026-11-22T14:30:00 --to 2026-11-22T14:31:00 --body none",
        "store dump ~/store --from 1073741824 --count 10",
    )
)
@on_store
def dump(
    layout: Layout,
    begin: Annotated[
        str,
        typer.Option("--from", help="From this log offset, or store time, like 2026-11-22T14:30:00."),
    ] = "",
    end: Annotated[str, typer.Option("--to", help="Up to this log offset (not included), or time.")] = "",
    topic: Annotated[str | None, typer.Option("--topic", "-t", help="Only this topic.")] = None,
    queue: Annotated[int | None, typer.Option("--queue", help="Only this queue of the topic.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Only messages of the topic with this key, or unique key.")
    ] = None,
    body: Annotated[str, typer.Option("--body", help="Show bodies as text, base64, hex; or none.")] = "text",
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many.")] = None,
) -> None:
    """Print messages as the log has them, a JSON object in each line; damaged places go to standard error."""
    from itertools import islice

    from actormq.cli.dumped import BODIES, bounds_of, line_of
    from actormq.store.disk import RealDisk
    from actormq.store.tools.dumping import Wanted
    from actormq.store.tools.dumping import dump as dumped
    from actormq.store.tools.walking import BadPlace

    if topic is None and (queue is not None or key is not None):
        raise ConfigError("--queue and --key need --topic")
    if body not in BODIES:
        raise ConfigError(f"--body must be one of {', '.join(BODIES)}, not {body!r}")
    wanted = Wanted(**bounds_of(begin, end), topic=topic, queue_id=queue, key=key)
    found = dumped(RealDisk(), layout, wanted)
    damaged = False
    for one in islice(found, count):
        if isinstance(one, BadPlace):
            damaged = True
            say(f"no good record at log offset {one.start} ({one.reason.name})")
        else:
            print(line_of(one, body))
    if damaged:
        raise typer.Exit(EXIT_FAILED)


Write: TypeAlias = Annotated[bool, typer.Option("--write", help="Do it; without, say what would be done.")]


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the store's lock: no broker works there, and none starts."""
    from actormq.actors.storelock import StoreLock

    lock = StoreLock(root)
    try:
        lock.own()
        yield
    finally:
        lock.close()


@app.command(epilog=examples("store rebuild /var/lib/actormq/broker-a --write"))
@on_store
def rebuild(
    layout: Layout,
    write: Write = False,
    with_index: Annotated[bool, typer.Option("--index/--no-index", help="Make an index, too.")] = True,
    delay_levels: DelayLevels = DELAY_LEVELS,
    as_json: Json = False,
) -> None:
    """Make all queues (batch queues, too) and the index anew from the log; the broker must have stopped."""
    import os
    import time

    from actormq.broker.delay import DelayLevels as Levels
    from actormq.store.disk import RealDisk
    from actormq.store.tools import rebuilding

    if not write:
        say(f"would replace all queues and the index in {layout.root}; nothing was changed (say --write)")
        return
    with unreadable_is_usage(), alone(layout.root), progress_bar("rebuild") as progress:
        done = rebuilding.rebuild(
            RealDisk(),
            layout,
            delay_ms=list(Levels(delay_levels).delays_ms),
            wall_ms=time.time_ns() // 1_000_000,
            pid=os.getpid(),
            with_index=with_index,
            progress=progress,
        )
    show_rebuilt(done, as_json)


@app.command(
    epilog=examples(
        "store truncate ~/store --at 1073741824", "store truncate ~/store --at 1073741824 --write"
    )
)
@on_store
def truncate(
    layout: Layout,
    at: Annotated[int, typer.Option("--at", min=0, help="The log offset where the log is to end.")],
    write: Write = False,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep what is cut, in a folder beside the log.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Cut the log between two records, queues and index with it; the broker must have stopped."""
    import os
    import time

    from actormq.store.disk import RealDisk
    from actormq.store.tools import cutting

    kept = layout.root / f"{cutting.KEPT_PREFIX}{at}-{time.strftime('%Y%m%d%H%M%S')}"
    try:
        if write:
            with unreadable_is_usage(), alone(layout.root):
                cut = cutting.truncate(RealDisk(), layout, at, pid=os.getpid(), kept=kept, keep=keep)
        else:
            cut = cutting.plan(RealDisk(), layout, at)
    except cutting.NoBoundary as error:
        raise ConfigError(error.remark) from None
    if as_json:
        print_json(
            {**as_json_value(asdict(cut)), "written": write, "kept": str(kept) if write and keep else None}
        )
    else:
        show_cut(cut, kept if write and keep else None)
    if not write:
        say("nothing was changed (say --write)")


@app.command(
    epilog=examples(
        "store backup /var/lib/actormq/broker-a /backup/monday",
        "store backup /var/lib/actormq/broker-a /backup/tuesday --since /backup/monday",
    )
)
@on_store
def backup(
    layout: Layout,
    target: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DEST")],
    since: Annotated[
        Path | None, typer.Option("--since", help="An earlier backup: what it has is not read again.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share/--copy", help="Clone or link full log files where that can be done.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Copy a store, while its broker works or not: everything acknowledged before the command began."""
    from actormq.store.disk import RealDisk
    from actormq.store.tools import backup as copying

    with unreadable_is_usage(), progress_bar("backup") as progress:
        before = since.absolute() if since is not None else None
        done = copying.backup(
            RealDisk(), layout, target.absolute(), since=before, share=share, progress=progress
        )
    if as_json:
        print_json({**asdict(done), "files": len(done.files), "queues": len(done.queues)})
        return
    print(f"log offsets {done.log_min} to {done.log_end}, {len(done.files)} files in {target}")
    if done.left_out:
        say(f"not in the backup: {', '.join(done.left_out)}")


@app.command(epilog=examples("store restore /backup/monday /var/lib/actormq/broker-a"))
def restore(
    source: Annotated[Path, typer.Argument(help="A backup's folder.", metavar="SRC")],
    target: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DEST")],
    delay_levels: DelayLevels = DELAY_LEVELS,
    as_json: Json = False,
) -> None:
    """Make a store of a backup, once every byte of it has been compared with its manifest."""
    import os
    import time

    from actormq.broker.delay import DelayLevels as Levels
    from actormq.store.disk import RealDisk
    from actormq.store.tools import backup as copying

    with unreadable_is_usage(), progress_bar("restore") as progress:
        done = copying.restore(
            RealDisk(),
            source.absolute(),
            target.absolute(),
            delay_ms=list(Levels(delay_levels).delays_ms),
            wall_ms=time.time_ns() // 1_000_000,
            pid=os.getpid(),
            progress=progress,
        )
    show_rebuilt(done, as_json)
