"""The same checkpoint and versions give the same bytes, whatever surrounds the export."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hat_export.base.files import sha256_of

#: Exports in both forms and quantizes: one process, so that libraries are imported once.
SCRIPT = """
import sys
from pathlib import Path
from hat_export.export.onnx_export import export_onnx
from hat_export.quantize.bundles import quantize_bundle
from hat_export.quantize.plan import uniform_plan
from hat_export.quantize.schemes import find_scheme, find_target

checkpoint, out, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for form in ("onnx", "packed"):
    export_onnx(checkpoint, out / form, attention=form, threads=threads)
scheme = find_scheme("int8-weights")

def plan(quantizer):
    target = find_target("cpu-avx2")
    return uniform_plan(quantizer.all_layers, scheme, target, {}, "minmax", False, False)

quantize_bundle(out / "onnx", out / "int8", plan, None, threads)
"""


def exported(checkpoint: Path, folder: Path, threads: int, umask: int, **variables: str) -> Path:
    """Export in surroundings of its own; the folder of bundles."""
    place = folder / checkpoint.name
    folder.mkdir()
    if checkpoint.is_dir():
        shutil.copytree(checkpoint, place)
    else:
        for path in checkpoint.parent.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    home = folder / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), str(folder / "out"), str(threads)],
        env=os.environ | variables | {"HOME": str(home), "TMPDIR": str(home)},
        umask=umask,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_surroundings_give_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = exported(
        *(tiny_checkpoint, tmp_path / "one", 1, 0o022), PYTHONHASHSEED="0", TZ="UTC", LC_ALL="C"
    )
    two = exported(
        *(tiny_checkpoint, tmp_path / "two with spaces", 2, 0o077),
        PYTHONHASHSEED="4242",
        TZ="Asia/Kathmandu",
        LC_ALL="C.UTF-8",
    )
    found = hashes(one)
    assert len(found) > 15
    assert hashes(two) == found
