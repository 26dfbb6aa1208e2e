"""The same checkpoint and versions give the same bytes: two fresh clones in two environments.

Everything that could leak into a bundle differs: the folders, the environments, hash seeds, home,
time zone, locale, umask, number of threads, the date, and where the checkpoint lies.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import site
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import DATA, MODEL, ROOT
from faults import FAKETIME

from hat_export.base.files import sha256_of

#: What is exported, with its options.
EXPORTS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "CHECKPOINT"),
    "onnx --target onnxruntime": ("onnx", "CHECKPOINT", "--target", "onnxruntime"),
    "onnx --precision fp16": ("onnx", "CHECKPOINT", "--precision", "fp16"),
    "quantize, dynamic": ("quantize", "onnx", "--mode", "int8-dynamic", "--no-preflight"),
    "quantize, compensated": (
        *("quantize", "onnx --target onnxruntime", "--mode", "int8-weights", "--no-preflight"),
        *("--compensate", "--smooth", "--calibration", str(DATA)),
        *("--calibration-image-count", "32"),
    ),
}


@dataclass(frozen=True)
class Surroundings:
    """What one of the two runs in.

    Attributes:
        folder: All of it.
        threads: Of every command.
        umask: Of every file.
        variables: Environment.
    """

    folder: Path
    threads: int
    umask: int
    variables: dict[str, str]


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per export."""
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        one = Surroundings(
            *(Path(folder) / "a", 1, 0o022),
            {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"},
        )
        two = Surroundings(
            *(Path(folder) / "another place with spaces" / "b", 2, 0o077),
            {"PYTHONHASHSEED": "4242", "TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8"},
        )
        if Path(FAKETIME).exists():
            two.variables.update(LD_PRELOAD=FAKETIME, FAKETIME="+400d")
        for surroundings in (one, two):
            install(surroundings)
        rows = []
        for name in EXPORTS:
            first, second = (export(surroundings, name) for surroundings in (one, two))
            same = sum(first[file] == second.get(file) for file in first)
            differing = sorted(
                file for file in {*first, *second} if first.get(file) != second.get(file)
            )
            rows.append(
                {"export": name, "files": len(first), "identical": same, "differing": differing}
            )
            print(f"  {rows[-1]}", flush=True)
        return rows


def install(surroundings: Surroundings) -> None:
    """Clone the repository, make an environment and build the package in it."""
    folder = surroundings.folder
    folder.mkdir(parents=True)
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    # Libraries are borrowed: gigabytes, and their versions must be the same anyway.
    libraries = dict.fromkeys(
        str(Path(spec.origin).parents[1])
        for name in ("torch", "onnx", "typer", "scikit_build_core")
        if (spec := importlib.util.find_spec(name)) and spec.origin
    )
    paths = [*libraries, *site.getsitepackages()]
    own = next((folder / "venv" / "lib").glob("python3*")) / "site-packages"
    (own / "borrowed.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        [*pip, "--ignore-installed", str(source)], check=True, env=environment, cwd=folder
    )
    found = subprocess.run(
        [python, "-c", "import hat_export; print(hat_export.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    if not found.stdout.startswith(str(own)):
        raise SystemExit(f"{python} imports {found.stdout}")
    shutil.copytree(MODEL, folder / f"model-{surroundings.threads}" / MODEL.name)


def export(surroundings: Surroundings, name: str) -> dict[str, str]:
    """Run one export; SHA-256 of every file that it wrote."""
    folder = surroundings.folder
    # Sources of a quantization are called the same on both sides: their name is in the manifest.
    bundles = folder / "bundles"
    bundles.mkdir(exist_ok=True)
    places = {"CHECKPOINT": str(folder / f"model-{surroundings.threads}" / MODEL.name)}
    places |= {other: str(bundles / other) for other in EXPORTS}
    verb, *words = EXPORTS[name]
    command = [verb, *(places.get(word, word) for word in words)]
    home = folder / f"home-{surroundings.threads}"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [
            str(folder / "venv" / "bin" / "hat-export"),
            *command,
            str(bundles / name),
            *("--threads", str(surroundings.threads), "--quiet"),
        ],
        env=os.environ | surroundings.variables | {"HOME": str(home), "HF_HUB_OFFLINE": "1"},
        umask=surroundings.umask,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return {path.name: sha256_of(path) for path in (bundles / name).iterdir()}
