"""A real Triton Inference Server answers as the local session does: `make test-serve`.

It runs in an environment without torch, as a server has it; see ``conftest.py`` for the bundle.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hat_export.bundle.bundle import Bundle
from hat_export.cli.export import app
from hat_export.errors import BackendUnavailableError
from hat_export.index.query import found_images, open_search
from hat_export.runtime.backends.opening import open_bundle
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.session import Session
from hat_export.serving.local_server import LocalServer, server_folder
from hat_export.serving.repository import ServingOptions, write_repository
from picture_samples import pictures, write_folder

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with open_bundle(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def index(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_folder(folder / "images", pictures(40))
    out = folder / "i.hatidx"
    arguments = ["index", str(tiny_bundle), str(folder / "images"), str(out), "-q"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return out


@pytest.fixture(scope="module")
def server(
    tiny_bundle: Path, index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    try:
        server_folder()
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    repository = tmp_path_factory.mktemp("served") / "models"
    options = ServingOptions(backend="python", index=index, max_batch=8, queue_delay=20_000)
    write_repository(Bundle.read(tiny_bundle), repository, options)
    with LocalServer(repository) as running:
        yield running


class Client:
    """The same calls over HTTP and gRPC."""

    def __init__(self, protocol: str, server: LocalServer) -> None:
        self.protocol, self.server = protocol, server
        self._library: Any = importlib.import_module(f"tritonclient.{protocol}")
        self._client = self._library.InferenceServerClient(getattr(server, protocol))

    def infer(self, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        kinds = {"float32": "FP32", "int64": "INT64", "int32": "INT32", "object": "BYTES"}
        tensors = []
        for name, values in inputs.items():
            tensor = self._library.InferInput(name, list(values.shape), kinds[values.dtype.name])
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        response = self._client.infer(model, tensors)
        facts = response.get_response()
        outputs = facts["outputs"] if isinstance(facts, dict) else facts.outputs
        names = [one["name"] if isinstance(one, dict) else one.name for one in outputs]
        return {name: response.as_numpy(name) for name in names}

    def executions(self, model: str) -> tuple[int, int]:
        """Inferences so far, and calls of the model that they took."""
        facts = self._client.get_inference_statistics(model)
        if isinstance(facts, dict):
            one = facts["model_stats"][0]
            return int(one["inference_count"]), int(one["execution_count"])
        one = facts.model_stats[0]
        return int(one.inference_count), int(one.execution_count)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: LocalServer) -> Client:
    return Client(request.param, server)


def test_features_are_the_sessions(client: Client, session: Session) -> None:
    pixels = noise_pixels(session.spec, 3, seed=4)
    ids, mask = noise_captions(session.spec, 4, 9, seed=5)
    served = client.infer("hat_image", pixel_values=pixels)
    for level, values in enumerate(session.encode_images(pixels).levels, start=1):
        assert np.array_equal(served[f"image_level{level}"], values)
    served = client.infer("hat_text", input_ids=ids, attention_mask=mask)
    real = mask.astype(bool)  # padding has no meaning
    for level, values in enumerate(session.encode_texts(ids, mask).levels, start=1):
        assert np.array_equal(served[f"text_level{level}"][real], values[real])


def test_the_ensemble_scores_as_the_session(client: Client, session: Session) -> None:
    pixels = noise_pixels(session.spec, 3, seed=6)
    ids, mask = noise_captions(session.spec, 5, 12, seed=7)
    served = client.infer("hat_score", pixel_values=pixels, input_ids=ids, attention_mask=mask)
    expected = session.score(session.encode_images(pixels), session.encode_texts(ids, mask))
    assert np.array_equal(served["scores"], expected)


def test_search_finds_what_the_command_finds(client: Client, index: Path) -> None:
    texts = ["a dog on a beach", "blue and green squares"]
    query = np.array([[text.encode()] for text in texts], np.object_)
    served = client.infer("hat_search", query=query, top_k=np.full((2, 1), 5, np.int32))
    with open_search(index, threads=1, verify=False) as opened:
        for number, text in enumerate(texts):
            hits = found_images(opened, text, 5, 1000)
            assert [name.decode() for name in served["ids"][number]] == list(hits.ids)
            assert np.abs(served["scores"][number] - hits.scores).max() < 1e-5


def test_concurrent_requests_are_put_together_and_kept_apart(
    client: Client, session: Session
) -> None:
    pixels = noise_pixels(session.spec, 16, seed=8)
    before = client.executions("hat_image")

    def ask(number: int) -> dict[str, np.ndarray]:
        own = Client(client.protocol, client.server)  # the HTTP client is for one thread
        return own.infer("hat_image", pixel_values=pixels[number : number + 1])

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    after = client.executions("hat_image")
    assert after[0] - before[0] == 16
    assert after[1] - before[1] < 16, "nothing was put together"
    expected = session.encode_images(pixels).levels
    for number, served in enumerate(answers):
        for level, values in enumerate(expected, start=1):
            difference = np.abs(served[f"image_level{level}"][0] - values[number]).max()
            assert difference < 1e-5  # a batch of another size may round otherwise


def test_a_wrong_request_is_answered_with_the_reason(client: Client) -> None:
    ids = np.array([[1, 2, 3]])
    with pytest.raises(Exception, match="attention_mask must be 1 on the first words"):
        client.infer("hat_text", input_ids=ids, attention_mask=np.array([[0, 1, 1]]))
    query = np.array([[b"a dog"]], np.object_)
    with pytest.raises(Exception, match="1 <= top_k"):
        client.infer("hat_search", query=query, top_k=np.zeros((1, 1), np.int32))
