"""A bundle runs without torch: `make test-serve`, in an environment that has none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hat_export.errors import BackendUnavailableError
from hat_export.runtime.backends.opening import load, open_bundle
from picture_samples import pictures, write_folder

pytestmark = pytest.mark.serve

#: What exports and never runs: none of it may be needed, and none of it is here.
HEAVY = ("torch", "torchvision", "timm", "transformers", "onnx", "onnxscript", "ray")


def test_nothing_heavy_is_installed() -> None:
    assert [name for name in HEAVY if importlib.util.find_spec(name)] == []


def test_a_bundle_is_verified_encodes_and_scores(tiny_bundle: Path, tmp_path: Path) -> None:
    made = pictures(3)
    folder = write_folder(tmp_path, made)
    with open_bundle(tiny_bundle, threads=1) as session:
        paths = session.encode_images([folder / name for name in made])
        for form in (
            session.encode_images([Image.open(folder / name) for name in made]),
            session.encode_images(list(made.values())),
        ):
            for one, other in zip(paths.levels, form.levels, strict=True):
                assert np.array_equal(one, other)
        scores = session.score(paths, session.encode_texts(["a dog", "a red square"]))
        assert scores.shape == (3, 2)
        assert np.isfinite(scores).all()


def test_a_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"hat-export\[export\]"):
        load(tmp_path)


def test_the_commands_index_and_search(tiny_bundle: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "images", pictures(5))
    program = str(Path(sys.executable).with_name("hat-export"))
    out = str(tmp_path / "i.hatidx")
    subprocess.run([program, "index", str(tiny_bundle), str(tmp_path / "images"), out], check=True)
    found = subprocess.run(
        [program, "search", out, "a dog", "--html", str(tmp_path / "found.html")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "5 of 5 images scored exactly" in found.stdout
    assert (tmp_path / "found.html").read_text().count("data:image/webp") == 5
