"""Indexing and searching many synthetic images: time, memory, size, and what a kill costs.

The images are made from a seed and lie in one zip of small PNGs. With --kills, indexing is killed
with SIGKILL at random moments and started again, and the index is compared with an uninterrupted
one.
"""

from __future__ import annotations

import argparse
import filecmp
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from hat_export.base.machine import environment
from hat_export.index.images import ImageIndex
from hat_export.index.record_file import IndexRecoveryWarning


def write_images(path: Path, count: int, side: int) -> None:
    """A zip of PNGs: a few coloured blocks each, so that no two are alike."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(count):
            file = io.BytesIO()
            picture = Image.fromarray(blocks[number])
            picture.resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
            archive.writestr(f"{number:07d}.png", file.getvalue())


def command(*arguments: str | Path | int) -> list[str]:
    return [sys.executable, "-m", "hat_export.cli.export", *map(str, arguments)]


def timed(arguments: list[str]) -> dict[str, float | str]:
    """Run a command; seconds, CPU seconds, and peak memory in bytes."""
    started = time.perf_counter()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
        "result": output.strip().splitlines()[-1],
    }


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def killed(arguments: list[str], out: Path, times: int, whole: int, reach: float) -> list[int]:
    """Start and kill indexing so often, at moments spread over the whole run.

    Args:
        arguments: The command.
        out: Its index.
        times: How often.
        whole: Size of the complete index in bytes.
        reach: Largest further wait in seconds, so that a kill meets any step of the work.

    Returns:
        Images in the index after each kill.
    """
    chance = random.Random(0)
    counts = []
    for size in sorted(chance.randrange(whole * 19 // 20) for _ in range(times)):
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
            while size_of(out) < size and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, reach))
            process.kill()
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"it ended with {process.returncode} before it could be killed")
        counts.append(committed(out))
        print(f"  killed: {counts[-1]} images", flush=True)
    return counts


def committed(path: Path) -> int:
    """Images of an index that whoever was writing it had committed."""
    if not path.exists():
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndexRecoveryWarning)
        with ImageIndex.open(path) as index:
            return len(index)


def compared(whole: Path, hurt: Path) -> dict[str, object]:
    """An index that was killed beside one that wasn't."""
    with ImageIndex.open(whole) as one, ImageIndex.open(hurt) as other:
        other.verify()
        return {
            "lost": len(set(one.ids) - set(other.ids)),
            "doubled": len(other.ids) - len(set(other.ids)),
            "same_ids_in_order": one.ids == other.ids,
            "same_records": one.ids == other.ids
            and all((one.file.record(n) == other.file.record(n)).all() for n in range(len(one))),
            "same_file": filecmp.cmp(whole, hurt, shallow=False),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image-count", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--reach", type=float, default=2.0, help="Seconds a kill may wait.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for images and indexes.")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the results.")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    images = arguments.work / "images.zip"
    if not images.exists():
        write_images(images, arguments.image_count, arguments.side)
    results: dict[str, object] = {"images": arguments.image_count, "environment": environment()}
    options = ("--threads", arguments.threads, "--quiet")
    whole = arguments.work / "whole.hatidx"
    whole.unlink(missing_ok=True)
    results["index"] = timed(command("index", arguments.bundle, images, whole, *options))
    results["index_bytes"] = size_of(whole)
    print(json.dumps(results["index"]), flush=True)
    searches = {"two-stage": ("--rescore", 1000), "exact": ("--exact",)}
    for name, choice in searches.items():
        query = ("search", whole, "a red square", "--threads", arguments.threads, *choice)
        results[name] = timed(command(*query))
        print(json.dumps(results[name]), flush=True)
    if arguments.kills:
        hurt = arguments.work / "hurt.hatidx"
        hurt.unlink(missing_ok=True)
        start = command("index", arguments.bundle, images, hurt, *options)
        results["after_kills"] = killed(
            start, hurt, arguments.kills, size_of(whole), arguments.reach
        )
        results["resumed"] = timed(start)
        results["compared"] = compared(whole, hurt)
        print(json.dumps(results["compared"]), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
