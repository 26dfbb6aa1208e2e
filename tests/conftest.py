"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hat_export.base.cache import CACHE_VARIABLE
from hat_export.base.machine import default_threads
from hat_export.spec import ModelSpec
from places import GOLDEN, MODEL, VOCABULARY

# `make test-serve` has no torch and names a bundle that was made elsewhere.
TEST_BUNDLE = os.environ.get("HAT_EXPORT_TEST_BUNDLE")

#: Processes of pytest-xdist that the tests are shared out to.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

if TEST_BUNDLE is None:
    import torch

    # Two threads give the same results everywhere and leave a shared machine usable.
    torch.set_num_threads(max(1, 2 // WORKERS))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker its part of the cores; libraries read these variables as they are loaded."""
    workers = getattr(config.option, "numprocesses", None)
    if workers:
        part = str(max(1, default_threads() // workers))
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = part


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What commands keep between runs goes to a folder of the tests."""
    folder = tmp_path_factory.mktemp("hat-export-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"golden_{name}.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def golden_kernel() -> dict[str, np.ndarray]:
    return _arrays("kernel")


@pytest.fixture(scope="session")
def golden_model() -> dict[str, np.ndarray]:
    return _arrays("model")


@pytest.fixture(scope="session")
def golden_preprocess() -> dict[str, np.ndarray]:
    return _arrays("preprocess")


@pytest.fixture(scope="session")
def golden_recall() -> dict[str, np.ndarray]:
    return _arrays("recall")


@pytest.fixture(scope="session")
def golden_captions() -> list[dict[str, Any]]:
    text = (GOLDEN / "golden_captions.json").read_text(encoding="utf-8")
    captions: list[dict[str, Any]] = json.loads(text)
    return captions


@pytest.fixture(scope="session")
def official_tensors() -> dict[str, dict[str, Any]]:
    """Every tensor of the official state dict: its shape, dtype and role."""
    text = (GOLDEN / "official_state_dict.json").read_text(encoding="utf-8")
    tensors: dict[str, dict[str, Any]] = json.loads(text)["tensors"]
    return tensors


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few hundred thousand parameters, as a checkpoint folder.

    Its weights are far from the initial ones, so that a forgotten bias, mask or norm shows.
    """
    from hat_export.model.checkpoint import save_checkpoint
    from hat_export.model.hat import HAT

    spec = ModelSpec(
        name="tiny",
        image_size=64,
        resize_size=72,
        window_size=2,
        embed_dim=16,
        depths=(2, 2, 4, 2),
        image_heads=(1, 2, 4, 8),
        text_positions=40,
        text_dim=32,
        text_layers=4,
        text_heads=2,
        text_hidden=64,
        text_level_layers=(0, 2, 3),
        dim=48,
    )
    torch.manual_seed(0)
    model = HAT(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.0 if "bias_table" in name else 0.1
            if parameter.ndim == 1:
                parameter.add_(spread * torch.randn_like(parameter))
            else:
                torch.nn.init.normal_(parameter, std=spread if "table" in name else 0.15)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(folder, model.eval(), VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Bundles by model, ``tiny`` or ``demo``, and options of ``export_onnx``.

    Each is exported once, whatever the number of modules and workers that ask for it.
    """

    def bundle(model: str, **options: Any) -> Path:
        from hat_export.export.onnx_export import export_onnx
        from shared_folders import made_once

        name = "-".join([model, *(f"{key}={value}" for key, value in sorted(options.items()))])

        def export(target: Path) -> None:
            demo = model == "demo"
            source = MODEL if demo else request.getfixturevalue("tiny_checkpoint")
            export_onnx(source, target, **options, require_fused=True, threads=1)

        return made_once(tmp_path_factory, name, export)

    return bundle


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """The tiny model, exported; or the bundle that the environment names."""
    if TEST_BUNDLE is not None:
        return Path(TEST_BUNDLE)
    bundle: Path = request.getfixturevalue("exported")("tiny")
    return bundle


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the exported tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
