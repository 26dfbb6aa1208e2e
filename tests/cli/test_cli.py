"""The command lines as a user meets them: exit status, one line of error, nothing left behind."""

from __future__ import annotations

import inspect
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_lines import PROGRAMS, command
from hat_export.bundle.bundle import Bundle
from hat_export.cli.bench.parity import parity_command
from hat_export.model.checkpoint import save_checkpoint
from hat_export.model.hat import HAT
from hat_export.parity.budget import DEFAULT_BUDGET
from places import VOCABULARY


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, timeout=300, **options
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of error, after checking that it is one."""
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    return errors[0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noise pictures with five captions each, in Karpathy's format."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    words = "red blue dog cat tree house old young runs sleeps".split()
    images = []
    for index in range(8):
        pixels = random.integers(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        sentences = [{"raw": " ".join(random.choice(words, 4))} for _ in range(6)]
        images.append({"filename": f"{index}.png", "split": "test", "sentences": sentences})
    (folder / "dataset_noise.json").write_text(json.dumps({"images": images, "dataset": "noise"}))
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program: str) -> None:
    done = run(program, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_help_of_every_command() -> None:
    for program, names in (
        ("hat-export", ["onnx", "inspect"]),
        ("hat-bench", ["parity", "latency", "compare", "report", "load", "profile"]),
    ):
        for name in names:
            done = run(program, name, "--help")
            assert done.returncode == 0
            assert "Usage:" in done.stdout


def test_export_inspect_parity_latency(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    done = run("hat-export", "onnx", tiny_checkpoint, bundle, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "equal to PyTorch" in done.stdout
    assert "10 of 10 attention fused" in done.stdout
    done = run("hat-export", "inspect", bundle)
    assert done.returncode == 0
    assert "10 of 10" in done.stdout
    assert "intact" in done.stdout
    done = run("hat-export", "inspect", bundle, "--json")
    assert json.loads(done.stdout)["format"] == "hat-export bundle"
    reports = [tmp_path / f"parity.{ending}" for ending in ("json", "md", "html")]
    options = [item for path in reports for item in ("--report", path)]
    options += ["--folds", 2]
    done = run("hat-bench", "parity", tiny_checkpoint, bundle, "--data", dataset, *options)
    assert done.returncode == 0, done.stderr
    assert "Parity passed" in done.stdout
    content = json.loads(reports[0].read_text())
    assert content["passed"] is True
    assert content["data"]["captions"] == 40
    assert content["data"]["folds"]["count"] == 2
    assert content["data"]["score_difference"] < 2e-5
    assert all(path.stat().st_size > 500 for path in reports)
    done = run(
        *("hat-bench", "latency", tiny_checkpoint, bundle, "--seconds", 0, "--calls", 2),
        *("--image-batch", 1, "--text-batch", 2, "--threads", 1, "--threads", 2, "--passes", 1),
        *("--cold-starts", 0, "--no-bound", "--parity", reports[0]),
        *("--report", tmp_path / "latency.json", "--report", tmp_path / "latency.html"),
    )
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "latency.json").read_text())["data"]
    assert len(data["timings"]) == 2 * 2 * 5
    assert {row["threads"] for row in data["timings"]} == {1, 2}
    assert list(data["recalls"]) == ["tiny (torch)", "bundle (onnxruntime)"]
    page = (tmp_path / "latency.html").read_text()
    assert page.count("<svg") >= 7
    assert "Recall over latency: end to end" in page
    assert "http" not in page.replace("&#x27;", "")


def test_latency_of_one_bundle_compared_and_merged(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    few = ("--image-batch", 1, "--text-batch", 2, "--score-size", "2x3", "--gallery", 2)
    options = (("--cold-starts", 1), ("--cold-starts", 0, "--no-bound"))
    for path, more in zip(paths, options, strict=True):
        done = run(
            *("hat-bench", "latency", tiny_bundle, "--seconds", 0, "--calls", 4, "--passes", 2),
            *(*few, "--threads", 1, *more, "--report", path),
        )
        assert done.returncode == 0, done.stderr
    data = json.loads(paths[0].read_text())["data"]
    (target,) = data["targets"]
    (start,) = target["starts"]
    assert 0 < start["python"] < start["opened"] < start["first_result"]
    assert target["bytes"] == sum(file.stat().st_size for file in tiny_bundle.iterdir())
    assert start["peak_bytes"] <= 1.2 * target["peak_bytes"]
    cases = {case["component"]: case for case in data["bounds"]["cases"]}
    assert set(cases) == {"images", "texts", "scores", "end to end"}
    assert all(0 < case["seconds"] < 1 for case in cases.values())
    assert data["environment"]["hardware"]["affinity"]
    done = run("hat-bench", "compare", *paths, "--margin", 100)
    assert done.returncode == 0, done.stderr
    assert "5 without a difference" in done.stdout
    content = json.loads(paths[1].read_text())
    for timing in content["data"]["timings"]:
        for part in timing["passes"]:
            for name in ("round_seconds", "wait_seconds"):
                part[name] = [[100 * value for value in calls] for calls in part[name]]
    paths[1].write_text(json.dumps(content))
    done = run("hat-bench", "compare", *paths)
    assert done.returncode == 1
    assert "5 of 5 cases slower" in done.stdout
    assert not done.stderr
    merged = tmp_path / "merged.html"
    done = run("hat-bench", "report", *paths, "--report", merged)
    assert done.returncode == 0, done.stderr
    assert "[old]" in merged.read_text()


def test_load_and_profile(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen isn't installed")
    logs, report = tmp_path / "logs", tmp_path / "report.json"
    done = run(
        *("hat-bench", "load", tiny_bundle, "--work", "texts", "--scenario", "SingleStream"),
        *("--seconds", 0.2, "--threads", 1, "--logs", logs, "--report", report),
    )
    assert done.returncode == 0, done.stderr
    (outcome,) = json.loads(report.read_text())["data"]["outcomes"]
    assert outcome["statistic"] == "p90 latency"
    assert (logs / "texts-SingleStream" / "mlperf_log_summary.txt").is_file()
    done = run("hat-bench", "profile", tiny_bundle, "--runs", 2, "--threads", 1, "--report", report)
    assert done.returncode == 0, done.stderr
    image, text = json.loads(report.read_text())["data"]["profiles"]
    layers = {row["name"] for row in image["layers"] + text["layers"]}
    assert "vit_model.layers.2.blocks.3" in layers
    assert "text_transformer.encoder.layer.3" in layers
    assert next(row for row in image["operators"] if row["name"] == "Attention")["calls"] > 0


def test_scoring_and_search(tiny_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    report = ("--report", tmp_path / "report.json")
    done = run(
        *("hat-bench", "scoring", "--image-count", 2, "--caption-count", 4, "--rounds", 2),
        *("--formula-caption-count", 2, "--threads", 1, *report),
    )
    assert done.returncode == 0, done.stderr
    levels = json.loads((tmp_path / "report.json").read_text())["data"]["levels"]
    assert [row["level"] for row in levels] == [1, 2, 3, "all"]
    done = run(
        *("hat-bench", "search", tiny_bundle, "--data", dataset, "--tuning-split", "test"),
        *("--queries", 4, "--threads", 1, *report),
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "report.json").read_text())["data"]
    assert {"level3", "pooled"} <= set(content)
    assert content["pooled"]["latency"]["points"][-1]["rescore"] == 8
    assert "chosen on noise/test" in done.stdout


def test_the_exit_status_of_parity_and_compare(
    tiny_bundle: Path, dataset: Path, tmp_path: Path
) -> None:
    """The candidate is the same model with other weights: it retrieves something else.

    Two random models rank 8 pictures differently. One of the two orders loses: that fails. The
    other gains, but so few pictures don't show that nothing is lost: that can't be judged.
    """
    spec = Bundle.read(tiny_bundle).manifest.spec
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "other", HAT(spec).eval(), VOCABULARY)
    options = ("--data", dataset, "--max-drop", "rsum=0", "--threads", 1)
    verdicts = {1: ("Parity FAILED", False), 2: ("Parity could not be judged", None)}
    reports = {}
    for number, pair in enumerate(
        ((tiny_bundle, tmp_path / "other"), (tmp_path / "other", tiny_bundle))
    ):
        report = tmp_path / f"{number}.json"
        done = run("hat-bench", "parity", *pair, *options, "--report", report)
        said, passed = verdicts[done.returncode]
        assert said in done.stdout, done.stderr
        assert json.loads(report.read_text())["passed"] is passed
        told = " ".join(done.stdout.split())  # lines are broken where they end
        assert ("images to tell" in told) == (done.returncode == 2)
        reports[done.returncode] = report, pair
    failed, undecided = (reports[status] for status in (1, 2))
    report = tmp_path / "strict" / "parity.json"
    strict = ("--strict", "--no-attribution", "--report", report)
    done = run("hat-bench", "parity", *undecided[1], *options, *strict)
    assert done.returncode == 1
    data = json.loads(report.read_text())["data"]
    assert data["verdict"] == "failed"
    assert data["reused"]["reference"] == {"images": 8, "captions": 40}
    script = report.with_name("reproduce.sh")
    assert os.access(script, os.X_OK)
    assert "--strict" in script.read_text()

    done = run("hat-bench", "compare", failed[0], undecided[0], "--report", tmp_path / "c.html")
    assert done.returncode == 0, done.stderr
    assert "B is no worse than A by its verdict: failed, then could not judge." in done.stdout
    assert run("hat-bench", "compare", undecided[0], failed[0]).returncode == 1
    for content, message in (
        ('{"kind": "latency", "version": 1, "data": {}}', "compare two of one kind"),
        ('{"kind": "parity", "version": 1, "data": {"dataset": "x"}}', "only reports on the same"),
        ('{"kind": "parity", "version": 1, "data": {}}', "not parity reports of this version"),
        ('{"kind": "parity", "version": 0, "data": {}}', "report version 0"),
        ("[", "not JSON"),
    ):
        (tmp_path / "x.json").write_text(content)
        assert message in error_of(run("hat-bench", "compare", failed[0], tmp_path / "x.json"))


def test_the_default_budget_is_said_where_it_is_shown() -> None:
    """The command line may not import the module that defines it."""
    default = inspect.signature(parity_command).parameters["max_drop"].default
    assert default == DEFAULT_BUDGET


def test_a_killed_parity_goes_on_where_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of encoding: what was encoded is found again."""
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    images = []
    for index in range(60):
        pixels = random.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        sentences = [{"raw": f"{index} cats in house {n}"} for n in range(5)]
        images.append({"filename": f"{index}.png", "split": "test", "sentences": sentences})
    (tmp_path / "dataset_killed.json").write_text(json.dumps({"images": images}))
    cache = tmp_path / "cache"
    arguments = ("hat-bench", "parity", tiny_bundle, tiny_bundle, "--data", tmp_path, "--batch", 1)
    arguments += ("--threads", 1, "--cache", cache, "--report", tmp_path / "parity.json")
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while sum(path.stat().st_size for path in cache.glob("images-*")) < 200_000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    reused = json.loads((tmp_path / "parity.json").read_text())["data"]["reused"]["reference"]
    assert 0 < reused["images"] < 60
    assert reused["captions"] == 0


def test_no_such_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such checkpoint" in error_of(run("hat-export", "onnx", tmp_path / "x.ckpt", out))
    assert "no such bundle" in error_of(run("hat-export", "inspect", tmp_path / "x"))
    assert "no such dataset" in error_of(
        run("hat-bench", "parity", tmp_path, tmp_path, "--data", tmp_path / "x.json")
    )
    assert not out.exists()


def test_a_truncated_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = (tiny_checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    message = error_of(run("hat-export", "onnx", tmp_path / "cut.safetensors", tmp_path / "out"))
    assert "cut.safetensors" in message
    assert not (tmp_path / "out").exists()


def test_a_pickle_with_code_in_it(tmp_path: Path) -> None:
    import pickle
    import zipfile

    trace = tmp_path / "it-ran"

    class Exploit:
        def __reduce__(self):
            return (os.system, (f"touch {trace}",))

    path = tmp_path / "evil.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {"x": Exploit()}}))
        archive.writestr("archive/version", "3\n")
    message = error_of(run("hat-export", "onnx", path, tmp_path / "out"))
    assert "system" in message
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


def test_a_wrong_architecture_and_missing_keys(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, path)
    assert "other.safetensors" in error_of(run("hat-export", "onnx", path, tmp_path / "out"))
    folder = tmp_path / "less"
    folder.mkdir()
    weights = safetensors.numpy.load_file(tiny_checkpoint / "model.safetensors")
    weights.pop("cross_modal_text_transform_2.bias")
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    for name in ("spec.json", "vocab.txt"):
        (folder / name).write_bytes((tiny_checkpoint / name).read_bytes())
    message = error_of(run("hat-export", "onnx", folder, tmp_path / "out"))
    assert "cross_modal_text_transform_2.bias" in message
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_in_a_bundle(bundle_copy: Path) -> None:
    path = bundle_copy / "image.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    assert "SHA-256 differs" in error_of(run("hat-export", "inspect", bundle_copy))


def test_a_full_disk(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No file may grow beyond 300 kB: the image graph doesn't fit."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = run("hat-export", "onnx", tiny_checkpoint, tmp_path / "out", preexec_fn=limit)
    assert "can't be written" in error_of(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export(tiny_checkpoint: Path, tmp_path: Path, sent: signal.Signals) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        status, errors = interrupted_export(tiny_checkpoint, folder, sent)
        if status:  # else a busy machine let it end before the signal came
            break
    assert status == 130
    assert errors.splitlines()[-1] == "error: interrupted; nothing was left behind"
    assert list(folder.iterdir()) == []


def interrupted_export(checkpoint: Path, folder: Path, sent: signal.Signals) -> tuple[int, str]:
    """Status and messages of an export that gets a signal while it writes."""
    process = subprocess.Popen(
        command("hat-export", "onnx", checkpoint, folder / "out"),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None:
        if any(path.name.startswith(".out.partial") for path in folder.iterdir()):
            process.send_signal(sent)
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_an_existing_target_is_kept(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    before = (tiny_bundle / "manifest.json").read_bytes()
    message = error_of(run("hat-export", "onnx", tiny_checkpoint, tiny_bundle))
    assert "--overwrite" in message
    assert (tiny_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-drop", "r2=1"), "unknown key"),
        (("--report", "x.pdf"), "a report ends in"),
        (("--split", "nothing"), "no image of split"),
        (("--backend", "magic"), "no backend 'magic'"),
        (("--folds", "3"), "--folds 3 does not divide 8 images"),
        (("--cache", "/proc/none"), "/proc/none"),
        (("--images", "nowhere"), "nowhere: expected a folder or a zip"),
    ],
)
def test_wrong_options(
    tiny_bundle: Path, dataset: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("hat-bench", "parity", tiny_bundle, tiny_bundle, "--data", dataset, *arguments)
    assert message in error_of(done)


def test_usage_errors_show_the_usage(tmp_path: Path) -> None:
    done = run("hat-bench", "latency", tmp_path, "--image-batch", 0)
    assert done.returncode == 2
    assert "--image-batch" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away(tiny_bundle: Path) -> None:
    arguments = command("hat-export", "inspect", tiny_bundle, "--json")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)
