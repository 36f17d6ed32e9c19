"""What is wrong with a store: counted by kind, the first ones described."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong; docs/cli.md lists the kinds."""

    kind: str
    file: str
    what: str
    log_offset: int | None = None
    topic: str | None = None
    queue_id: int | None = None
    queue_offset: int | None = None
    count: int = 1
    """So many neighbours have the same."""


class Report:
    """Takes findings; keeps the first few."""

    def __init__(self, findings_max: int) -> None:
        self.counts: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._findings_max = findings_max

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += finding.count
        if len(self.findings) < self._findings_max:
            self.findings.append(finding)
