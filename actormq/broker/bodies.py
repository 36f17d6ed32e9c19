"""Typed reading of JSON bodies, with fastjson's leniency: nulls are absent, the unknown is ignored."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from actormq.errors import RequestError, ResponseCode

T = TypeVar("T")


def read_body(value: Any, kind: type[T], what: str, code: ResponseCode = ResponseCode.INVALID_PARAMETER) -> T:
    """Return parsed JSON as a `kind`.

    Args:
        what: what it should have been, for the remark.
    Raises: RequestError with `code`: a required field is missing, or has another type.
    """
    try:
        return msgspec.convert(_without_nulls(value), kind, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(code, f"this is no {what}: {error}") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
