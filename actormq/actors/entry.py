"""The way into a role's process: from a forkserver's child with one socket to a running actor."""

from __future__ import annotations

import importlib
import logging
import os
import select
import socket
from pathlib import Path
from typing import Final, NoReturn

from actormq import faults
from actormq.actors import control
from actormq.actors.context import Letters, PositionsDirectory, RoleContext
from actormq.actors.mailbox import Mailbox
from actormq.actors.runtime import ProcessActor
from actormq.actors.status import EXIT_BUG, EXIT_REFUSED
from actormq.actors.storelock import StoreLock
from actormq.errors import ActorMQError, StoreFailed
from actormq.shm.doorbell import Doorbell
from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of
from actormq.shm.segment import Segment
from actormq.telemetry.log import role_logger

_LINGER_MS: Final = 200


def run_role(sock: socket.socket) -> NoReturn:
    """Be the role that the supervisor describes over `sock`; the end of a forkserver's child."""
    line = control.Line(sock, control.ToRole)
    before, after = _await_go(line)
    start, descriptors = before.pop(0)
    assert isinstance(start, control.Start), start
    faults.arm(os.environ.get(faults.ENVIRONMENT, ""), start.incarnation)
    handed = dict(zip(start.names, descriptors, strict=True))
    log = role_logger(start.role, handed["log"])
    status = EXIT_BUG
    try:
        context = _context(start, handed, line, log)
        context.letters_before, context.letters_after = before, after
        status = _live(resolve(start.class_path), context, line)
    except BaseException:
        log.critical("died of an unknown error", exc_info=True)
    finally:
        os._exit(status)


def _await_go(line: control.Line) -> tuple[Letters, Letters]:
    """Return what came before Go (Start first), and what came after it already."""
    poller = select.poll()
    poller.register(line.fileno(), select.POLLIN)
    came: Letters = []
    while not any(isinstance(message, control.Go) for message, _ in came):
        poller.poll()
        came += line.receive()
        if line.ended:
            os._exit(0)
    go = next(index for index, (message, _) in enumerate(came) if isinstance(message, control.Go))
    return came[:go], came[go + 1 :]


def _live(role_class: type[ProcessActor], context: RoleContext, line: control.Line) -> int:
    """Be the role until it ends; return the exit status."""
    try:
        if role_class.writes_store:
            StoreLock(context.config.store.root).share()
            _exit_if_orphaned(line)
        mailbox = context.mailbox = _mailbox(role_class, context, line)
        role_class.start(context)
        mailbox.close(_LINGER_MS)
    except StoreFailed as error:
        context.store_failed(error.remark)
    except ActorMQError as error:
        if context.positions.role(context.slot, RoleCell.STATE) != RoleState.STARTING:
            raise  # once it serves, trouble that nobody caught is a bug
        context.log.critical(error.remark)
        return EXIT_REFUSED
    return 0


def _mailbox(role_class: type[ProcessActor], context: RoleContext, line: control.Line) -> Mailbox:
    directory = PositionsDirectory(context.positions)
    mailbox = Mailbox(context.run_dir, context.role, context.incarnation, role_class.messages, directory)
    mailbox.lifeline_fd = line.fileno()
    mailbox.on_lifeline = lambda: _exit_if_orphaned(line)
    return mailbox


def _exit_if_orphaned(line: control.Line) -> None:
    """Exit when the supervisor is gone.

    After the shared lock was taken this decides: a new supervisor takes byte 0 only when ours is dead.
    """
    if line.at_end():
        os._exit(0)


def _context(
    start: control.Start,
    descriptors: dict[str, int],
    line: control.Line,
    log: logging.Logger,
) -> RoleContext:
    by_kind: dict[str, dict[str, int]] = {"segment": {}, "doorbell": {}, "listener": {}}
    for name, fd in descriptors.items():
        kind, _, rest = name.partition(":")
        if rest:
            by_kind[kind][rest] = fd
    segments = {name: Segment.attach(fd) for name, fd in by_kind["segment"].items()}
    positions = Positions(segments["positions"].view)
    return RoleContext(
        role=start.role,
        slot=start.slot,
        incarnation=start.incarnation,
        config=control.decode_config(start.config),
        positions=positions,
        doorbells={role: Doorbell(fd, positions, slot_of(role)) for role, fd in by_kind["doorbell"].items()},
        segments=segments,
        run_dir=Path(start.run_dir),
        listeners=by_kind["listener"],
        log=log,
        line=line,
        one_shot=start.one_shot,
    )


def resolve(class_path: str) -> type[ProcessActor]:
    """Return the class at ``package.module:Class``."""
    module_name, _, class_name = class_path.partition(":")
    role_class = getattr(importlib.import_module(module_name), class_name)
    assert isinstance(role_class, type), class_path
    assert issubclass(role_class, ProcessActor), class_path
    return role_class
