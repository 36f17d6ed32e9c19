"""What is said of kernels that are not compiled."""

from __future__ import annotations

import pytest

from actormq import kernels
from actormq.cli.serving import check_kernels
from actormq.errors import ConfigError


def test_uncompiled_kernels_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where stores are seen in order it works, with one line that says why it is slower."""
    monkeypatch.setattr(kernels, "COMPILED", False)
    check_kernels("x86_64")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "not compiled" in said[0]


def test_uncompiled_kernels_are_refused_where_they_would_lose_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without fences a processor with weak ordering would show a ring's position before its bytes."""
    monkeypatch.setattr(kernels, "COMPILED", False)
    with pytest.raises(ConfigError, match="aarch64"):
        check_kernels("aarch64")


def test_compiled_kernels_are_no_news(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is said."""
    monkeypatch.setattr(kernels, "COMPILED", True)
    check_kernels("aarch64")
    assert capsys.readouterr().err == ""
