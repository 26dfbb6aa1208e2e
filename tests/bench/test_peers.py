"""Tools that the figures are beside are installed, or named as missing: never left out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from places import BENCH, MODEL, ROOT, on_path

#: Distribution of a wheel that no index has.
NAME = "hat-export-test-peer"


@pytest.fixture(scope="module")
def modules():
    """``figures`` and ``peers.environment``."""
    with on_path(BENCH):
        import figures
        from peers import environment

        return figures, environment


@pytest.fixture
def wheels(modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip installs from; a peer of version 1.5 is what is compared with."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(modules[1], "PINNED", {NAME: "1.5"})
    return folder


def write_wheel(folder: Path, number: str) -> None:
    module = NAME.replace("-", "_")
    info = f"{module}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{number}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", f"VERSION = {number!r}\n")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {number}\n"
        )
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


def test_a_part_without_its_peers_ends_with_their_names_and_the_command(
    modules, wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, _ = modules
    write_wheel(wheels, "1.4")  # another version is no peer
    out, results = tmp_path / "out", tmp_path / "results"
    out.mkdir()
    arguments = argparse.Namespace(out=out, results=results, quick=True, minutes=5.0)
    parts = ["peers", "quantization", "quantization_official"]
    assert figures.measure(parts, arguments) == parts
    python = out / "peers-environment" / "bin" / "python"
    said = capsys.readouterr().out
    missing = f"not measured: {NAME}==1.5 not installed: {python} -m pip install {NAME}==1.5;"
    assert said.count(missing) == 3
    assert not results.exists()
    assert not (out / "hat-stand-in.ckpt").exists()  # nothing was made in vain


def test_parts_not_measured_are_an_exit_status(modules, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, _ = modules
    monkeypatch.setattr(figures, "measure", lambda chosen, arguments: chosen)
    monkeypatch.setattr(sys, "argv", ["figures.py", "peers", "--quick", "--out", os.devnull])
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="not measured: peers") as ended:
        figures.main()
    assert ended.value.code not in (0, None)


def test_the_environment_has_the_pinned_peers_and_the_libraries_of_this_one(
    modules, wheels: Path, tmp_path: Path
) -> None:
    _, environment = modules
    write_wheel(wheels, "1.4")
    write_wheel(wheels, "1.5")
    folder, log = tmp_path / "environment", tmp_path / "log.txt"
    python = environment.ready(folder, log)
    script = f"import numpy, hat_export, {NAME.replace('-', '_')} as peer"
    script += "; print(peer.VERSION, numpy.__version__, hat_export.__file__)"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    import numpy as np

    import hat_export

    assert done.stdout.split() == ["1.5", np.__version__, hat_export.__file__]
    stamp = (folder / "pyvenv.cfg").stat().st_mtime_ns
    assert environment.ready(folder, log) == python
    assert (folder / "pyvenv.cfg").stat().st_mtime_ns == stamp  # it is made once


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("encoders.py", [MODEL, "--out"]),
        ("quantization.py", [MODEL, "--data", ROOT / "demo" / "emojicap", "--out"]),
    ],
)
def test_a_script_without_its_peers_measures_nothing(
    script: str, options: list[str], tmp_path: Path
) -> None:
    try:
        version("openvino")
        pytest.skip("OpenVINO is installed here")
    except PackageNotFoundError:
        pass
    done = subprocess.run(
        [sys.executable, BENCH / script, *options, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: openvino==")
    assert f"{sys.executable} -m pip install openvino==" in done.stderr
    assert not (tmp_path / "out").exists()
