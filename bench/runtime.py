"""What running a bundle costs before it does anything: installed size, and cold start.

Run it in an environment with `pip install 'hat-export[cpu]'` and nothing else. Every start is a new
process; the first of them, which fills the disk cache, isn't counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from hat_export.base.packages import package_versions

STARTS = {
    "python alone": "pass",
    "import hat_export": "import hat_export",
    "open, checked": "import hat_export; hat_export.open_bundle({bundle!r}, threads={threads})",
    "open, checked, encode a text": (
        "import hat_export\n"
        "session = hat_export.open_bundle({bundle!r}, threads={threads})\n"
        "session.encode_texts(['a dog on a beach'])"
    ),
    "open with verify=False": (
        "import hat_export; hat_export.open_bundle({bundle!r}, threads={threads}, verify=False)"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON of the results.")
    arguments = parser.parse_args()
    packages = Path(sysconfig.get_path("purelib"))
    sizes = {}
    for path in packages.iterdir():
        parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
        sizes[path.name] = sum(part.stat().st_size for part in parts)
    print(f"torch installed: {importlib.util.find_spec('torch') is not None}")
    print(f"{packages}: {sum(sizes.values()) / 1e6:.0f} MB")
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    for name, size in largest:
        print(f"  {size / 1e6:7.1f} MB  {name}")
    medians = {}
    for name, code in STARTS.items():
        text = code.format(bundle=str(arguments.bundle), threads=arguments.threads)
        seconds = []
        for _ in range(arguments.starts + 1):
            started = time.perf_counter()
            # -P: the package that is installed, not the sources in the working folder.
            subprocess.run([sys.executable, "-P", "-c", text], check=True)
            seconds.append(time.perf_counter() - started)
        medians[name] = statistics.median(seconds[1:])
        print(f"{name}: {medians[name]:.3f} s (smallest {min(seconds[1:]):.3f})")
    if arguments.out:
        found = {
            "bytes": sum(sizes.values()),
            "largest": largest[:4],
            "starts": medians,
            "versions": package_versions(),
        }
        arguments.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
