"""Read spoiled files for minutes, and keep those that a reader cannot cope with.

    python tests/fuzz/run.py image --minutes 10
    python tests/fuzz/run.py image found/image/1a2b3c4d.0      read one that was kept once more

The rounds run in a process of their own: where machine code crashes, hangs or fills the memory,
that is seen, its file is kept, and another process goes on. What leads to an answer of a new kind
is spoiled further. Linux alone tells a process' memory like this.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import readers
from spoil import spoil

from tiffin.export.errors import InputError

SECONDS, BYTES = 10, 2**31  # of the processor and of memory, for a file of some kilobytes
_MOST = 400_000  # bytes of a file that is spoiled further
_TRIES = 400  # to make a kept file smaller


class TooLarge(Exception):
    """A small file that filled the memory."""


def _memory(name: str) -> int:
    """Return a figure of this process' memory in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])


def answer(folder: readers.Folder, index: int, content: bytes) -> tuple[str, str]:
    """Read a file; return what came of it, `read`, `refused` or `wrong`, and by which way.

    A file that takes longer than allowed ends the process.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        folder.read(index, content)
        kind, way = "read", ""
    except InputError as error:
        kind, way = "refused", _way(error)
    except BaseException as error:
        kind, way = "wrong", _way(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if _memory("VmHWM") - before > BYTES:
        return "wrong", f"TooLarge {way}"
    return kind, way


def _way(error: BaseException) -> str:
    """Return where an error came from: its own frames of this project, and those of its cause."""
    found = []
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/tests/fuzz/" not in f.filename][-1:]
        ours += [f for f in frames if re.search(r"/(export|recipes|layers)/", f.filename)][-1:]
        found.append(type(error).__name__)
        found += [f"{Path(f.filename).name}:{f.lineno}" for f in ours]
        error = error.__cause__
    return " ".join(found)


def smaller(folder: readers.Folder, index: int, content: bytes, way: str) -> bytes:
    """Return the file without what the fault does not need."""
    size, tries = len(content) // 2, 0
    while size and tries < _TRIES:
        for start in range(0, len(content), size):
            shorter = content[:start] + content[start + size :]
            tries += 1
            if tries > _TRIES:
                break
            if shorter != content and answer(folder, index, shorter) == ("wrong", way):
                content = shorter
                break
        else:
            size //= 2
    return content


def work(name: str, seconds: float, seed: int, kept: Path) -> None:
    """Go through rounds for some seconds; leave what was found, and the counts of rounds."""
    trace = open(kept / "trace", "w")  # noqa: SIM115  as the readers may redirect standard error
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGPROF, trace, chain=True)
    chance = random.Random(seed)
    now, known = kept / "now", {path.read_text() for path in kept.glob("*.way")}
    with tempfile.TemporaryDirectory() as place:
        folder = readers.Folder(readers.TARGETS[name], Path(place))
        stock = [(i, content) for i, (_, _, content) in enumerate(folder.files)]
        for i, content in [*stock]:  # also what is loaded once only
            assert answer(folder, i, content)[0] == "read", folder.files[i][0]
        limit = _memory("VmSize") + 4 * BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # Rounds; good reads; files kept for being answered in a new way; the ways.
        count, good, ways = 0, 0, set()
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            fresh = chance.random() < 0.4
            i, content = chance.choice(stock[: len(folder.files)] if fresh else stock)
            content = spoil(content, folder.files[i][1], chance)
            now.write_bytes(bytes([i]) + content)
            kind, way = answer(folder, i, content)
            count, good = count + 1, good + (kind == "read")
            if kind == "wrong" and way not in known:
                known.add(way)
                keep(kept, i, content, way)
                small = smaller(folder, i, content, way)
                keep(kept, i, small, way)
            elif kind != "wrong" and (i, way) not in ways and len(content) < _MOST:
                ways.add((i, way))
                stock.append((i, content))
            if count % 20 == 0 or time.monotonic() - start >= seconds:
                spent = time.monotonic() - start
                (kept / "count").write_text(json.dumps([count, good, len(ways), spent]))


def keep(kept: Path, index: int, content: bytes, way: str) -> None:
    """Write a file that a reader cannot cope with; one of the same fault is replaced."""
    stem = hashlib.sha256(way.encode()).hexdigest()[:8]
    (kept / f"{stem}.{index}").write_bytes(content)
    if not (kept / f"{stem}.way").exists():
        print(f"{kept.name}: {way} ({kept / stem}.{index})", flush=True)
    (kept / f"{stem}.way").write_text(way)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=readers.TARGETS)
    parser.add_argument("file", nargs="?", type=Path, help="a file that was kept")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--found", type=Path, default=Path("found"), help="folder for what is kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    kept = given.found / given.target
    kept.mkdir(parents=True, exist_ok=True)
    if given.file:
        with tempfile.TemporaryDirectory() as place:
            folder = readers.Folder(readers.TARGETS[given.target], Path(place))
            folder.read(int(given.file.suffix[1:]), given.file.read_bytes())
        print("Read.")
    elif given.seconds:
        work(given.target, given.seconds, given.seed, kept)
    else:
        lead(given.target, given.minutes, given.seed, kept)


def lead(target: str, minutes: float, seed: int, kept: Path) -> None:
    """Let processes work for so many minutes, and keep the files that they end at."""
    counts, ends = [0, 0, 0, 0.0], 0
    while (left := 60 * minutes - counts[3]) > 1:
        command = [sys.executable, __file__, target, "--found", str(kept.parent)]
        command += ["--seconds", str(left), "--seed", str(seed)]
        # In memory, as a round takes a few milliseconds, and here, as a crash leaves its files.
        with (
            open(kept / "said", "w+") as said,
            tempfile.TemporaryDirectory(dir="/dev/shm") as place,
        ):
            environment = os.environ | {"TMPDIR": place}
            status = subprocess.run(command, stderr=said, env=environment, check=False).returncode
            said.seek(0)
            text = said.read()
        if (kept / "count").exists():
            done = json.loads((kept / "count").read_text())
            (kept / "count").unlink()
        else:
            done = [0, 0, 0, SECONDS]
        counts = [a + b for a, b in zip(counts, done)]
        seed += 1
        if status > 0:
            sys.exit(text)
        if status:
            # It came to no answer: the frames that it was in tell one such end from another.
            content, ends = (kept / "now").read_bytes(), ends + 1
            trace = (kept / "trace").read_text()
            frames = re.findall(r'File ".*?([^/]+)", line (\d+) in', trace)[:2]
            where = " ".join(":".join(frame) for frame in frames)
            way = f"{signal.Signals(-status).name} {where}"
            keep(kept, content[0], content[1:], way)
        (kept / "now").unlink(missing_ok=True)
    found = len([*kept.glob("*.way")])
    print(
        f"{target}: {counts[0]:,} rounds in {counts[3] / 60:.1f} minutes, "
        f"{counts[1]:,} read, {counts[2]} ways; {found} findings, {ends} processes ended by one"
    )


if __name__ == "__main__":
    main()
