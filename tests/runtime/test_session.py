"""The same verbs on every backend, with the same answers and the same refusals."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hat_export
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.runtime.backends import BACKENDS, Backend
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.session import Session
from hat_export.score.features import ImageFeatures, TextFeatures

CAPTIONS = ["a dog", "two dogs chase a bright orange frisbee along the sand", "", "red"]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Iterator[Session]:
    with hat_export.load(tiny_checkpoint, threads=1) as session:
        yield session


#: Engines need a GPU: test_tensorrt_session.py and test_tensorrt_gpu.py have their session.
RUNNABLE = [name for name in BACKENDS if name != "tensorrt"]


@pytest.fixture(scope="module", params=["torch", *RUNNABLE])
def session(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_bundle: Path
) -> Iterator[Session]:
    if request.param == "torch":
        opened: Session = hat_export.load(tiny_checkpoint, threads=1)
    else:
        opened = hat_export.open_bundle(tiny_bundle, backend=request.param, threads=1)
    with opened:
        yield opened


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(90, 120), (200, 72), (64, 64)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_features_equal_the_reference(session: Session, reference: Session, batch: int) -> None:
    pixels = noise_pixels(session.spec, batch, seed=batch)
    ids, mask = noise_captions(session.spec, batch, 11, seed=batch)
    images, texts = session.encode_images(pixels), session.encode_texts(ids, mask)
    expected_images = reference.encode_images(pixels)
    expected_texts = reference.encode_texts(ids, mask)
    real = mask.astype(bool)
    for ours, theirs in zip(images.levels, expected_images.levels, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
    for ours, theirs in zip(texts.levels, expected_texts.levels, strict=True):
        np.testing.assert_allclose(ours[real], theirs[real], atol=5e-5)
    scores = session.score(images, texts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference.score(expected_images, expected_texts), atol=2e-5)


def test_features_do_not_hang_on_the_batch(session: Session) -> None:
    pixels = noise_pixels(session.spec, 5, seed=0)
    together = session.encode_images(pixels)
    alone = ImageFeatures.concatenate([session.encode_images(pixels[i : i + 1]) for i in range(5)])
    for one, other in zip(together.levels, alone.levels, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_scores_do_not_hang_on_padding_or_order(session: Session) -> None:
    images = session.encode_images(noise_pixels(session.spec, 3, seed=1))
    texts = session.encode_texts(CAPTIONS)
    scores = session.score(images, texts)
    one_by_one = [session.score(images, session.encode_texts([text])) for text in CAPTIONS]
    np.testing.assert_allclose(scores, np.concatenate(one_by_one, 1), atol=2e-5)
    backwards = session.score(images[::-1], texts[::-1])
    np.testing.assert_allclose(backwards[::-1, ::-1], scores, atol=2e-6)


def test_images_by_path_and_by_picture(session: Session, tmp_path: Path) -> None:
    paths = []
    for index, picture in enumerate(pictures()):
        paths.append(tmp_path / f"{index}.png")
        picture.save(paths[-1])
    from_paths = session.encode_images([str(paths[0]), *paths[1:]])
    from_pictures = session.encode_images(pictures())
    for one, other in zip(from_paths.levels, from_pictures.levels, strict=True):
        np.testing.assert_array_equal(one, other)


def test_reduced_images_project_to_the_features(session: Session) -> None:
    pixels = noise_pixels(session.spec, 3, seed=4)
    reduced, features = session.reduce_images(pixels), session.encode_images(pixels)
    reduced.check(session.spec)
    for stage, level, projection in zip(
        reduced.levels, features.levels, session.projections.levels, strict=True
    ):
        projected = projection.apply(stage) if projection else stage
        np.testing.assert_allclose(projected, level, atol=2e-5)
    with pytest.raises(InputError, match="no images"):
        session.reduce_images([])


def test_empty_batches(session: Session) -> None:
    images = session.encode_images([])
    texts = session.encode_texts([])
    assert session.score(images, texts).shape == (0, 0)
    some = session.encode_texts(["a dog"])
    assert session.score(images, some).shape == (0, 1)
    assert session.score(session.encode_images(pictures()), texts).shape == (3, 0)


def test_threads_share_a_session(session: Session) -> None:
    pixels = noise_pixels(session.spec, 2, seed=5)
    expected = session.encode_images(pixels).levels[2]
    with ThreadPoolExecutor(4) as pool:
        for features in pool.map(lambda _: session.encode_images(pixels), range(12)):
            np.testing.assert_allclose(features.levels[2], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), r"expected float32 \[images, 3, 64, 64\]"),
        (np.zeros((3, 64, 64), np.float32), "expected float32"),
        (np.zeros((1, 3, 64, 64)), "float64"),
        (["/no/such/picture.png"], "no such image"),
        ([7], "expected a PIL image, a path or encoded bytes"),
    ],
)
def test_wrong_images_are_refused(session: Session, images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.encode_images(images)  # type: ignore[arg-type]


def test_wrong_texts_are_refused(session: Session) -> None:
    ids, mask = noise_captions(session.spec, 2, 5, seed=0)
    wrong = [
        (("a dog",), "put it into a list"),
        ((["a"], mask), "goes with word-piece ids"),
        (([1],), "expected a string"),
        ((ids,), "need an attention_mask"),
        ((ids.astype(np.int32), mask), "int32"),
        ((ids, mask[:, :4]), "attention_mask is"),
        ((ids, mask[:, ::-1]), "1 on the first words"),
        ((ids, mask * 0), "at least one"),
        ((ids, mask * 2), "1 on the first words"),
        ((ids + session.spec.vocab_size, mask), "outside of 0"),
        ((np.ones((1, 33), np.int64), np.ones((1, 33), np.int64)), "takes 1 to 32"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            session.encode_texts(*arguments)


def test_features_of_another_model_are_refused(session: Session) -> None:
    images = ImageFeatures((np.zeros((1, 4, 8), np.float32),) * 3)
    with pytest.raises(InputError, match="8 wide"):
        session.score(images, session.encode_texts(["a dog"]))


def test_features_check_their_shapes() -> None:
    level = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(InputError, match="expected 3 arrays"):
        ImageFeatures((level, level))
    with pytest.raises(InputError, match="expected float32"):
        ImageFeatures((level.astype(np.float16),) * 3)
    with pytest.raises(InputError, match="between 1 and 3"):
        TextFeatures((level,) * 3, np.array([0, 3]))
    both = TextFeatures.concatenate(
        [
            TextFeatures((level,) * 3, np.array([3, 1])),
            TextFeatures((level[:, :1],) * 3, np.ones(2, int)),
        ]
    )
    assert both.levels[0].shape == (4, 3, 4)
    assert both[1:3].levels[0].shape == (2, 1, 4)


def test_threads_rest_after_a_call(tiny_bundle: Path) -> None:
    """Threads that spin for work would take the cores of the other encoder and of the scores."""
    with hat_export.open_bundle(tiny_bundle, threads=2, verify=False) as session:
        session.encode_images(noise_pixels(session.spec, 1, 0))
        before = time.process_time()
        time.sleep(0.1)
        # They may spin for a millisecond; by default they do for 30 and more.
        assert time.process_time() - before < 0.015


def test_unknown_and_uninstalled_backends() -> None:
    with pytest.raises(BackendUnavailableError, match="there are: onnxruntime"):
        hat_export.open_bundle("x", backend="onnx")
    missing = Backend("magic", "no_such_package", "pip install magic", "nowhere")
    assert "pip install magic" in str(missing.unavailable())


def test_a_bundle_runs_without_torch(tiny_bundle: Path) -> None:
    """What only an export, a report or a cluster needs is hidden from the process."""
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'transformers', 'onnx', 'torchvision', 'jinja2', 'ray'):\n"
        "    sys.modules[name] = None\n"
        "import hat_export\n"
        "with hat_export.open_bundle(sys.argv[1]) as session:\n"
        "    texts = session.encode_texts(['a dog'])\n"
        "    print(texts.levels[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "(1, 4, 48)\n"
