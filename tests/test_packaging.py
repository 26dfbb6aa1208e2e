"""What is installed: the mapping of kernels/ and cli/ into the package, and nothing beside it."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

#: Source folder -> where it lies in a wheel.
MAPPING = {"hat_export": "hat_export", "kernels": "hat_export/kernels", "cli": "hat_export/cli"}

#: Sources of the native library; everything else in the folders is packed.
NOT_PACKED = {".cpp", ".h", ".hpp", ".pyc"}

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "triton",
    "tensorrt",
    "onnx",
    "onnxruntime",
}


def run_python(code: str, folder: Path) -> str:
    """Standard output of a fresh interpreter started in the folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the repository as it is, built with the tools of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def packed(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_source_and_data_file(packed: set[str]) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in MAPPING.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in NOT_PACKED
    }
    assert "hat_export/py.typed" in expected
    assert "hat_export/cli/export/__init__.py" in expected
    assert expected <= packed, sorted(expected - packed)


def test_the_wheel_holds_nothing_outside_the_package(packed: set[str]) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"hat_export"}


def test_the_wheel_holds_the_native_library_and_not_its_sources(packed: set[str]) -> None:
    assert any(name.startswith("hat_export/kernels/") and name.endswith(".so") for name in packed)
    assert not [name for name in packed if Path(name).suffix in NOT_PACKED]


def test_the_wheel_serves_every_python_3_of_the_platform(wheel: Path) -> None:
    _, _, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform != "any"


def test_no_built_library_lies_among_the_sources() -> None:
    """It would be packed in place of the one that the build makes."""
    assert not list((ROOT / "kernels").rglob("*.so"))


def test_running_a_bundle_requires_no_heavy_library() -> None:
    """Follows the requirements of the requirements as they are installed here."""
    waiting = ["hat-export"]
    seen: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    assert "numpy" in seen
    assert not seen & HEAVY


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(name).decode())
    assert fields["Name"] == "hat-export"
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    extras = set(fields.get_all("Provides-Extra", ()))
    assert extras == {
        "export",
        "cpu",
        "gpu",
        "trt",
        "rtx",
        "bench",
        "datasets",
        "parquet",
        "ray",
        "serve",
        "sign",
        "fuzz",
        "dev",
    }


def test_the_installation_adds_no_top_level_name_but_its_own() -> None:
    files = metadata.files("hat-export")
    assert files
    top = {path.parts[0] for path in files if path.parts[0] not in {"..", "__pycache__"}}
    # An editable installation adds the two files through which the sources are found.
    assert {name for name in top if not name.startswith(("hat_export", "_editable_skbc_"))} == set()


@pytest.mark.parametrize("name", ["kernels", "cli", "tests", "bench"])
def test_folders_of_the_repository_are_not_importable_by_their_own_name(
    name: str, tmp_path: Path
) -> None:
    code = f"import hat_export, importlib.util as u; print(u.find_spec({name!r}))"
    assert run_python(code, tmp_path) == "None"


def test_the_mapped_packages_and_transformers_import_at_the_root_of_the_repository() -> None:
    """`import transformers` looks for a package named kernels, which this folder has too."""
    code = (
        "import transformers, hat_export.kernels, hat_export.cli, hat_export.cli.export;"
        "print(transformers.BertModel.__name__)"
    )
    assert run_python(code, ROOT) == "BertModel"


def test_the_folders_that_are_mapped_are_not_packages() -> None:
    assert not [folder for folder in ("kernels", "cli") if (ROOT / folder / "__init__.py").exists()]


@pytest.mark.parametrize("command", ["hat-export", "hat-bench"])
def test_the_commands_are_installed(command: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / command, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert command in result.stdout


def test_pytest_finds_the_fixture(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        points = archive.read(name).decode()
    assert "[pytest11]\nhat_export = hat_export.pytest_plugin" in points
