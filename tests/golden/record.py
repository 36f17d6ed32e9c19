"""Record the golden stores anew: run by hand, where Java and Maven are; the zips are committed.

    python tests/golden/record.py [4-plain …]

Each zip has a store as the official broker left it, without what has no meaning elsewhere, and `java.json`:
what was handed to that broker, and what its own classes read back (`java/Record.java` says more).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from interop import rocketmq  # noqa: E402

STORES = (
    ("5", "5", "plain"),
    ("5", "5", "crc"),
    ("5", "5", "ext"),
    ("5", "5", "batch"),
    ("4", "4-broker", "plain"),
)
"""Release line, jars, kind."""
LEFT_OUT = ("abort", "lock", "rocksdbstore")
"""Of this process alone, or of parts of RocketMQ that were not used."""


def main() -> None:
    wanted = sys.argv[1:]
    for line, jars, kind in STORES:
        if wanted and f"{line}-{kind}" not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            record(line, jars, kind, Path(folder))
            pack(Path(folder), HERE / f"rocketmq-{line}-{kind}.zip")


def record(line: str, jars: str, kind: str, folder: Path) -> None:
    """Run the broker; its store is `folder`/store then."""
    class_path = f"{rocketmq.jars(jars)}/*"
    sources = [str(HERE / "java" / "Record.java"), str(HERE / "java" / line / "Version.java")]
    classes = folder / "classes"
    subprocess.run(
        ["javac", "-nowarn", "-Xlint:none", "-d", classes, "-cp", class_path, *sources], check=True
    )
    home = folder / "home"
    with (folder / "output").open("wb") as output:
        done = subprocess.run(
            [
                "java", "-Xmx512m", "-XX:MaxDirectMemorySize=1g", *rocketmq.JAVA_17_OPENS,
                f"-Duser.home={home}", f"-Drocketmq.home.dir={home}", "-cp", f"{classes}:{class_path}",
                "Record", folder / "store", kind, str(rocketmq.free_port(-2, 1)), folder / "java.json",
            ],
            stdout=output, stderr=subprocess.STDOUT, timeout=120, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit((folder / "output").read_text()[-5000:])


def pack(folder: Path, target: Path) -> None:
    """Zip the store: files are sparse, so that is small."""
    store = folder / "store"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(folder / "java.json", "java.json")
        for path in sorted(store.rglob("*")):
            inside = path.relative_to(store)
            if path.is_file() and inside.parts[0] not in LEFT_OUT and path.suffix != ".bak":
                archive.write(path, Path("store") / inside)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
