"""Settings from a file, the environment and flags, in that order, as the typed sections of `actormq.config`.

One TOML file has a table per section (``[store]``, ``[gateway]`` …, with the sections' own names) and the
broker's own keys under ``[broker]``; the environment says ``ACTORMQ_STORE_FLUSH=sync``.  A RocketMQ
``broker.conf`` or ``namesrv.conf`` is read as it is.  Keys that we do not use are kept and named in one
warning; a key whose promise we could not keep (access control, a slave's role) refuses the start.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, get_type_hints

from actormq.cli.rocketmq_keys import BROKER_KEYS, NAMESRV_KEYS, OLD_SPELLINGS, REFUSED
from actormq.config import BadValue, BrokerConfig, NameServerConfig
from actormq.errors import ConfigError
from actormq.wire.properties import parse_properties

Config = TypeVar("Config", BrokerConfig, NameServerConfig)
Value = TypeVar("Value")

PREFIX: Final = "ACTORMQ_"
NOT_SETTINGS: Final = frozenset({"ACTORMQ_PURE", "ACTORMQ_FAULT"})
"""Variables that other parts read: which kernels to use, where to die."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value and where it was said, for the sentence when it is wrong."""

    value: object
    where: str


Layer = dict[str, Given]
"""``section.field`` to what was given; the broker's own fields are ``broker.name`` and so on."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Config]):
    """The settings, and what the person who wrote them should know."""

    config: Config
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    known: Layer
    unknown: dict[str, str]


# --- loading -------------------------------------------------------------------------------------------


def load_broker(
    file: Path | None, environ: Mapping[str, str], flags: Layer, base: Layer | None = None
) -> Loaded[BrokerConfig]:
    """Return a broker's settings.

    Args:
        file: TOML, or a RocketMQ ``broker.conf``.
        flags: what the command line says; wins over everything.
        base: what holds when nobody says otherwise; loses against everything.
    Raises:
        ConfigError: one sentence that names the key and where it stands.
    """
    read = _read_file(file, BROKER_KEYS)
    _check_store_paths(file, read)
    layers = _merge(base or {}, _follows(file, read, environ), read.known, _environment(environ), flags)
    if "store.root" not in layers:
        raise ConfigError(f"store.root is missing in {file}" if file else "no data folder is given")
    embedded = any(key.startswith("namesrv.") for key in (*(base or {}), *read.known, *flags))
    sections = {
        name: _section(kind, name, layers, file, {})
        for name, kind in _sections().items()
        if name not in ("broker", "namesrv") or (name == "namesrv" and embedded)
    }
    config = _section(BrokerConfig, "broker", layers, file, {**sections, "other_keys": read.unknown})
    return Loaded(config, _warnings(file, read, environ))


def load_namesrv(
    file: Path | None, environ: Mapping[str, str], flags: Layer, base: Layer | None = None
) -> Loaded[NameServerConfig]:
    """Return a name server's settings; arguments and errors as of `load_broker`."""
    read = _read_file(file, NAMESRV_KEYS)
    layers = _merge(base or {}, read.known, _environment(environ), flags)
    config = _section(NameServerConfig, "namesrv", layers, file, {"other_keys": read.unknown})
    return Loaded(config, _warnings(file, read, environ))


def flag(name: str, value: object) -> Given:
    """Return a flag's value for a layer."""
    return Given(value, f"--{name}")


def _merge(*layers: Layer) -> Layer:
    merged: Layer = {}
    for layer in layers:
        merged |= layer
    return merged


def _follows(file: Path | None, read: _Read, environ: Mapping[str, str]) -> Layer:
    """What follows from what was said: RocketMQ's variable, and its defaults for its own kind of file."""
    layer: Layer = {}
    if environ.get("NAMESRV_ADDR"):
        layer["broker.namesrv_addrs"] = Given(environ["NAMESRV_ADDR"], "NAMESRV_ADDR in the environment")
    if file is not None and not _is_toml(file):
        layer["store.root"] = Given(_rocketmq_root(), "RocketMQ's default")
        layer["broker.name"] = Given(socket.gethostname(), "RocketMQ's default")
        if "broker.advertised_host" in read.known:
            # RocketMQ would listen everywhere; we listen where we were told that clients come.
            layer["gateway.host"] = read.known["broker.advertised_host"]
    return layer


def _rocketmq_root() -> Path:
    return Path.home() / "store"


def _check_store_paths(file: Path | None, read: _Read) -> None:
    given = read.known.get("store.root")
    root = _rocketmq_root() if given is None else Path(str(given.value))
    for key, folder in (("storePathCommitLog", "commitlog"), ("storePathConsumeQueue", "consumequeue")):
        path = read.unknown.pop(key, None)
        if path is not None and "," in path:
            raise ConfigError(f"{key} in {file} has several paths: only one is supported")
        if path is not None and Path(path) != root / folder:
            raise ConfigError(f"{key} in {file} must be the folder {folder} in storePathRootDir ({root})")


# --- files ---------------------------------------------------------------------------------------------


def _read_file(file: Path | None, keys: Mapping[str, tuple[str, Callable[[str], object]]]) -> _Read:
    if file is None:
        return _Read({}, {})
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no UTF-8 text") from None
    return _read_toml(file, text) if _is_toml(file) else _read_properties(file, text, keys)


def _is_toml(file: Path) -> bool:
    return file.suffix == ".toml"


def _read_toml(file: Path, text: str) -> _Read:
    import tomllib  # 5 ms that a start without a file need not pay

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from None
    fields = _field_names()
    read = _Read({}, {})
    for section, table in tables.items():
        if not isinstance(table, dict):
            read.unknown[section] = str(table)
            continue
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in fields:
                read.known[key] = Given(value, f"{key} in {file}")
            else:
                read.unknown[key] = str(value)
    return read


def _read_properties(file: Path, text: str, keys: Mapping[str, tuple[str, Callable[[str], object]]]) -> _Read:
    read = _Read({}, {})
    for written, value in parse_properties(text).items():
        name = OLD_SPELLINGS.get(written, written)
        value = value.strip()
        _refuse(file, written, name, value)
        if name not in keys:
            read.unknown[written] = value
            continue
        field, convert = keys[name]
        where = f"{written} in {file}"
        try:
            read.known[field] = Given(convert(value), where)
        except (KeyError, ValueError):
            raise ConfigError(f"{where} cannot be {value!r}") from None
    return read


def _refuse(file: Path, written: str, name: str, value: str) -> None:
    if name in REFUSED and value.lower() == REFUSED[name][0]:
        raise ConfigError(f"{written}={value} in {file} cannot be kept: {REFUSED[name][1]}")
    if name == "brokerId" and value not in ("", "0"):
        raise ConfigError(f"{written}={value} in {file} cannot be kept: {REFUSED['brokerRole'][1]}")


def _variables() -> dict[str, str]:
    """Return the environment's name of every setting."""
    return {f"{PREFIX}{key.replace('.', '_').upper()}": key for key in _field_names()}


def _environment(environ: Mapping[str, str]) -> Layer:
    named = _variables()
    return {
        named[name]: Given(text, f"{name} in the environment")
        for name, text in environ.items()
        if name in named
    }


def _warnings(file: Path | None, read: _Read, environ: Mapping[str, str]) -> tuple[str, ...]:
    """One line for all keys of the file that are not used, one for variables that look like settings."""
    warnings = []
    if read.unknown:
        warnings.append(f"{file}: these keys are kept but not used: {', '.join(sorted(read.unknown))}")
    strange = {name for name in environ if name.startswith(PREFIX)} - _variables().keys() - NOT_SETTINGS
    if strange:
        warnings.append(f"the environment: these variables are no settings: {', '.join(sorted(strange))}")
    return tuple(warnings)


# --- values to sections --------------------------------------------------------------------------------


def _sections() -> dict[str, type[Any]]:
    """Return the section classes by name, ``broker`` for the outermost."""
    sections: dict[str, type[Any]] = {"broker": BrokerConfig, "namesrv": NameServerConfig}
    for name, kind in get_type_hints(BrokerConfig).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            sections[name] = kind
    return sections


def _field_names() -> set[str]:
    sections = _sections()
    return {
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
        if field.name not in sections and field.name != "other_keys"
    }


def _section(kind: type[Value], name: str, layers: Layer, file: Path | None, rest: dict[str, Any]) -> Value:
    hints = get_type_hints(kind)
    values = {
        key.partition(".")[2]: _convert(given, hints[key.partition(".")[2]])
        for key, given in layers.items()
        if key.partition(".")[0] == name
    }
    try:
        return kind(**values, **rest)
    except BadValue as error:
        given = layers.get(f"{name}.{error.field}")
        raise ConfigError(f"{given.where}: {error.remark}" if given else f"{name}.{error.remark}") from None
    except ConfigError as error:
        raise ConfigError(f"{error.remark} (section {name}{f' of {file}' if file else ''})") from None


def _convert(given: Given, kind: Any) -> object:
    """Return the given value as `kind`: text from properties, environment and flags, typed from TOML."""
    value = given.value
    if get_origin(kind) is UnionType:
        kinds = [item for item in get_args(kind) if item is not type(None)]
        if value is None or (isinstance(value, str) and value.lower() in ("", "none", "off")):
            return None
        kind = kinds[0]
    try:
        return _converted(value, kind)
    except (ValueError, TypeError):
        raise ConfigError(f"{given.where} must be {_expected(kind)}, not {value!r}") from None


def _converted(value: object, kind: Any) -> object:
    if get_origin(kind) is tuple:
        parts = value.replace(",", ";").split(";") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError
        return tuple(part.strip() for part in parts if part.strip())
    if kind is bool:
        return _bool(value)
    if kind is int and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise ValueError
    if kind in (str, Path) and not isinstance(value, str | Path):
        raise ValueError
    if kind is Path and not str(value).strip("\0"):
        raise ValueError  # an empty text would mean the present folder
    if kind is Path:
        return Path(str(value)).expanduser().absolute()
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        return kind(value.lower())
    return kind(value)


def _bool(value: object) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError


def _expected(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(item.value) for item in kind)
    if get_origin(kind) is tuple:
        return "a list of texts"
    return {int: "an integer", bool: "true or false", Path: "a path"}.get(kind, "a text")
