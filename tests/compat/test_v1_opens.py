"""Files that version 0.1.0 wrote (README.md beside them) open and give what they gave then.

Only the public API and the command lines are used, so that what moves inside the package needs no
change here. A format that changes needs one: a conversion in one line, and the same checks.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import signal
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hat_export

pytest.importorskip("onnx")

ARCHIVE = Path(__file__).parent / "v1" / "files.tar.xz"

#: Bundle -> the backend that ran it when its outputs were recorded.
BUNDLES = {
    "standard": "onnxruntime",
    "onnxruntime": "onnxruntime",
    "fp16": "emulation",
    "int8-dynamic": "onnxruntime",
    "int8-static": "onnxruntime",
    "int4-weights": "onnxruntime",
}

#: Largest difference of features (about 1 in size) and of scores from those recorded. Float32
#: differs by the order of sums, which depends on the processor: the tolerance is that of the
#: bundle's own self-test, and a tenth of it for a sum of cosines. Where activations are rounded,
#: such a difference can carry a value over to the next step. A step of fp16 is 1e-3 of the value;
#: one of int8, which 4 bits have for their activations too, a 127th of the largest of its row
#: or block (about 4), and few values of a row are carried over.
TOLERANCES = {
    "standard": (2e-4, 2e-5),
    "onnxruntime": (2e-4, 2e-5),
    "fp16": (1e-2, 2e-3),
    "int8-dynamic": (4e-2, 1e-2),
    "int8-static": (4e-2, 1e-2),
    "int4-weights": (4e-2, 1e-2),
}

#: Scores of a search: those of float32 bundles. Recorded neighbours are 5e-3 apart at least.
SCORE_TOLERANCE = 2e-5

REPORTS = "parity latency latency-later profile preflight scoring search load quantize".split()


@dataclass(frozen=True)
class Done:
    """What a command left: exit status, what it printed on each stream."""

    status: int
    out: str
    error: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def pictures(files: Path) -> list[Image.Image]:
    with zipfile.ZipFile(files / "images.zip") as archive:
        return [
            Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            for name in archive.namelist()[:4]
        ]


@pytest.fixture(scope="module")
def captions(files: Path) -> list[str]:
    return (files / "captions.txt").read_text(encoding="utf-8").splitlines()[:5]


@pytest.fixture(scope="module")
def expected(files: Path) -> dict[str, np.ndarray]:
    with np.load(files / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def working_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the files lie; and what a command does to signals is undone."""
    monkeypatch.chdir(files)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(
    working_folder: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command of the installed programs in this process."""

    def run_command(program: str, *arguments: object) -> Done:
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=program)
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.load()()
        printed = capsys.readouterr()
        status = ended.value.code
        assert isinstance(status, int), status
        return Done(status, printed.out, printed.err)

    def checked(program: str, *arguments: object, status: int = 0) -> Done:
        done = run_command(program, *arguments)
        assert done.status == status, done.error
        return done

    return checked


def assert_recorded(
    name: str, source: str, session: Any, pictures: Any, captions: Any, expected: Any
) -> None:
    """``session`` gives what bundle ``name`` gave, within the tolerance of ``source``."""
    features, scores = TOLERANCES[source]
    images, texts = session.encode_images(pictures), session.encode_texts(captions)
    real = texts.mask.astype(bool)
    for level in range(3):
        recorded = expected[f"{name}/image_level{level + 1}"]
        np.testing.assert_allclose(images.levels[level], recorded, atol=features, rtol=0)
        recorded = expected[f"{name}/text_level{level + 1}"]
        np.testing.assert_allclose(texts.levels[level][real], recorded[real], atol=features, rtol=0)
    recorded = expected[f"{name}/scores"]
    np.testing.assert_allclose(session.score(images, texts), recorded, atol=scores, rtol=0)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_gives_its_recorded_outputs(
    name: str, files: Path, pictures: Any, captions: Any, expected: Any
) -> None:
    with hat_export.open_bundle(files / name, BUNDLES[name], threads=1) as session:
        assert_recorded(name, name, session, pictures, captions, expected)


@pytest.mark.parametrize("name", BUNDLES)
def test_inspect_shows_a_bundle(name: str, run: Any) -> None:
    done = run("hat-export", "inspect", name)
    assert "intact" in done.out
    shown = json.loads(run("hat-export", "inspect", name, "--json").out)
    assert shown["format_version"] == 1
    assert shown["spec"]["name"] == "v1"
    assert shown["precision"] == ("fp16" if name == "fp16" else "fp32")
    quantized = shown.get("quantization")
    assert (quantized is not None) == name.startswith("int")


def test_a_signature_is_accepted(files: Path, run: Any) -> None:
    key = files / "release.key.pub"
    run("hat-export", "inspect", "standard", "--require-signature", key)
    done = run("hat-export", "inspect", "onnxruntime", "--require-signature", key, status=1)
    assert done.error.startswith("error: ")
    with hat_export.open_bundle(files / "standard", threads=1, require_signature=key):
        pass


def test_a_secret_key_signs(files: Path, run: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(files / "onnxruntime", tmp_path / "bundle")
    run("hat-export", "sign", bundle, "--key", "release.key")
    run("hat-export", "inspect", bundle, "--require-signature", "release.key.pub")


def test_a_checkpoint_gives_its_recorded_outputs(
    files: Path, pictures: Any, captions: Any, expected: Any
) -> None:
    pytest.importorskip("torch")
    with hat_export.load(files / "checkpoint", threads=1) as session:
        assert_recorded("standard", "standard", session, pictures, captions, expected)


def hits_of(done: Done) -> tuple[list[str], list[float]]:
    results = json.loads(done.out)["results"]
    return [hit["id"] for hit in results], [hit["score"] for hit in results]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("index", ["images-float32", "images-float16", "images-int8"])
def test_a_text_finds_its_recorded_images(index: str, exact: bool, files: Path, run: Any) -> None:
    wanted = json.loads((files / "expected_hits.json").read_text())[index]
    options = ["--bundle", "standard", "--json", "-k", 4, *(["--exact"] if exact else [])]
    ids, scores = hits_of(run("hat-export", "search", f"{index}.hatidx", "two red dogs", *options))
    assert ids == [hit["id"] for hit in wanted]
    recorded = [hit["score"] for hit in wanted]
    np.testing.assert_allclose(scores, recorded, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("index", ["captions-float32", "captions-int8"])
def test_an_image_finds_its_recorded_captions(
    index: str, files: Path, run: Any, pictures: list[Image.Image], tmp_path: Path
) -> None:
    wanted = json.loads((files / "expected_hits.json").read_text())[index]
    pictures[0].save(tmp_path / "0.png")
    options = ["--image", tmp_path / "0.png", "--bundle", "standard", "--json", "-k", 4]
    ids, scores = hits_of(run("hat-export", "search", f"{index}.hatidx", *options))
    assert ids == [hit["id"] for hit in wanted]
    recorded = [hit["score"] for hit in wanted]
    np.testing.assert_allclose(scores, recorded, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_an_index_is_changed(storage: str, files: Path, run: Any, tmp_path: Path) -> None:
    """Deletes what is found first, compacts, adds it again: the same is found as before."""
    index = Path(shutil.copy(files / f"images-{storage}.hatidx", tmp_path / "copy.hatidx"))
    wanted = json.loads((files / "expected_hits.json").read_text())[f"images-{storage}"]
    query = ["two red dogs", "--bundle", "standard", "--json", "-k", 3]
    run("hat-export", "index-delete", index, wanted[0]["id"], "--compact")
    ids, _ = hits_of(run("hat-export", "search", index, *query))
    assert ids == [hit["id"] for hit in wanted[1:]]
    options = ["--skip-known", "--threads", 1, "-q"]
    run("hat-export", "index", "standard", "images.zip", index, *options)
    ids, scores = hits_of(run("hat-export", "search", index, *query))
    assert ids == [hit["id"] for hit in wanted[:3]]
    recorded = [hit["score"] for hit in wanted[:3]]
    # The record that is added may round one value to the next step of its storage.
    np.testing.assert_allclose(scores, recorded, atol=1e-3, rtol=0)


def test_a_bundle_and_an_index_are_served(run: Any, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    options = ["--index", "images-int8.hatidx"]
    run("hat-export", "triton", "standard", repository, *options)
    assert (repository / "hat_search" / "config.pbtxt").is_file()


CALIBRATION = ["--calibration", "dataset_v1.json", "--split", "val", "--images", "images.zip"]
QUANTIZE = ["hat-export", "quantize", "standard"]
QUIET = ["--no-preflight", "--threads", 1, "-q"]


def test_a_plan_is_applied(
    run: Any, tmp_path: Path, pictures: Any, captions: Any, expected: Any
) -> None:
    out = tmp_path / "int8"
    run(*QUANTIZE, out, "--plan", "plan.json", *CALIBRATION, *QUIET)
    with hat_export.open_bundle(out, threads=1) as session:
        assert_recorded("int8-static", "int8-static", session, pictures, captions, expected)


def test_a_search_goes_on_from_its_state(files: Path, run: Any, tmp_path: Path) -> None:
    state = Path(shutil.copy(files / "search-state.json", tmp_path / "state.json"))
    plan = tmp_path / "plan.json"
    options = ["--target", "cpu-avx2", "--max-drop", "rsum=100", "--objective", "size"]
    files_options = ["--state", state, "--save-plan", plan]
    run(*QUANTIZE, tmp_path / "out", *options, *CALIBRATION, *QUIET, *files_options)
    assert json.loads(plan.read_text()) == json.loads((files / "searched-plan.json").read_text())
    # Times would differ had anything been measured again.
    before, after = (json.loads(path.read_text()) for path in (files / "search-state.json", state))
    assert after["tried"] == before["tried"]
    assert after["noise"] == before["noise"]


def test_reports_are_merged(run: Any, tmp_path: Path) -> None:
    pages = [tmp_path / f"all.{ending}" for ending in ("html", "md", "json")]
    options = [item for page in pages for item in ("--report", page)]
    run("hat-bench", "report", *(f"{name}.json" for name in REPORTS), *options)
    text = pages[1].read_text(encoding="utf-8")
    for word in ("onnxruntime (onnxruntime)", "int4-weights", "images"):
        assert word in text


@pytest.mark.parametrize(
    ("old", "new"), [("latency", "latency-later"), ("latency", "latency"), ("parity", "parity")]
)
def test_old_reports_are_compared(old: str, new: str, run: Any, tmp_path: Path) -> None:
    page = tmp_path / "comparison.md"
    run("hat-bench", "compare", f"{old}.json", f"{new}.json", "--report", page)
    assert page.stat().st_size > 500


def test_a_new_report_is_compared_with_an_old_one(run: Any, tmp_path: Path) -> None:
    data = ["--data", "dataset_v1.json", "--images", "images.zip", "--no-cache", "--threads", 1]
    report, page = tmp_path / "new.json", tmp_path / "comparison.md"
    parity = ["parity", "standard", "int4-weights", *data, "-q", "--report", report]
    run("hat-bench", *parity, status=1)
    run("hat-bench", "compare", "parity.json", report, "--report", page)
    text = page.read_text(encoding="utf-8")
    assert "(+0.00)" in text
    assert "0 new in B, 0 gone" in text
