"""Maps of store files, read-only, a bounded number of them.

Files of the store are never shortened, so a map never faults.  A map outlives its place in the cache
for as long as somebody holds a view of it, and its file's name, too.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

MAPS_MAX: Final = 256


class MappedFiles:
    """The maps used last, by path and incarnation of what the file belongs to."""

    def __init__(self, maps_max: int = MAPS_MAX) -> None:
        """`maps_max`: how many stay open, each with one descriptor."""
        assert maps_max > 0, "a cache of no maps"
        self._maps_max = maps_max
        self._views: OrderedDict[tuple[str, int], memoryview] = OrderedDict()

    def __len__(self) -> int:
        return len(self._views)

    def view(self, path: Path | str, incarnation: int = 0) -> memoryview:
        """Return the whole file's bytes, read-only; empty for an empty file.

        A new `incarnation` of the same path is mapped anew: the old one's map shows a deleted file.
        Raises FileNotFoundError.
        """
        key = (os.fspath(path), incarnation)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _map(key[0])
            if len(self._views) > self._maps_max:
                # Unmapped when the last slice of it goes, which may be in somebody's send queue.
                self._views.popitem(last=False)
        else:
            self._views.move_to_end(key)
        return view

    def forget(self, path: Path | str) -> None:
        """Drop every incarnation of one file, or of all files below a folder."""
        name = os.fspath(path)
        for key in [key for key in self._views if key[0] == name or key[0].startswith(name + os.sep)]:
            del self._views[key]

    def clear(self) -> None:
        """Drop all maps."""
        self._views.clear()


def _map(path: str) -> memoryview:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else b"")
    finally:
        os.close(fd)
