"""Coverage-guided fuzzing of every parser, by atheris.

Each parser has a process of its own, which atheris ends when an input breaks the rule: a parser
takes what it is given, or refuses it with a HatError. What it found stays in the working folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import samples

#: An input may take so long, in seconds, and so much memory, in MB.
SECONDS, MEGABYTES = 20, 2500

#: Names of parsers, what their corpus starts from, and where the rule is checked.
TARGETS = {
    "manifest": ("bundle/manifest.json",),
    "graph": ("bundle/text.onnx", "bundle/alignment.onnx"),
    "index": ("images.hatidx", "captions.hatidx"),
    "karpathy": ("data/dataset_small.json",),
    "tables": ("lines.txt",),
    "keys": (),
    "spec": ("model/spec.json",),
    "plan": ("plan.json",),
    "report": ("parity.json", "latency.json"),
    "pickle": (),
    "torch": ("zip.ckpt", "old.ckpt"),
    "arrays": ("bundle/projections.safetensors",),
    "signature": (),
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("fuzzing needs atheris; install it with: pip install 'hat-export[fuzz]'")
    with tempfile.TemporaryDirectory(prefix="hat-fuzz-") as work:
        sound = Path(work) / "sound"
        sound.mkdir()
        samples.make_sound(sound)
        names = [name for name in TARGETS if options.only in (None, name)]
        return [_fuzz(name, sound, Path(work), options) for name in names]


def _fuzz(name: str, sound: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    corpus = work / name
    corpus.mkdir()
    for file in TARGETS[name]:
        (corpus / Path(file).name).write_bytes((sound / file).read_bytes())
    if name == "pickle":
        (corpus / "pickle").write_bytes(_pickle(sound))
    command = [
        *(sys.executable, str(Path(__file__)), name, str(corpus)),
        *(f"-max_total_time={options.seconds:.0f}", f"-seed={options.seed}"),
        *(f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1"),
        *("-max_len=300000", f"-artifact_prefix={work}/found-{name}-"),
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executions = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    findings = len(list(work.glob(f"found-{name}-*")))
    row = {
        "parser": name,
        "executions": int(executions[1]) if executions else 0,
        "seconds": round(time.monotonic() - began),
        "edges covered": int(edges[-1]) if edges else 0,
        "findings": findings,
    }
    print(row, flush=True)
    if findings or done.returncode:
        print(done.stderr[-3000:], flush=True)
    return row


def _pickle(sound: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(sound / samples.ZIP_CHECKPOINT) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def parsers(work: Path) -> dict[str, Callable[[bytes], None]]:
    """What each name runs on an input."""
    import io

    from hat_export.base.arrays import read_arrays
    from hat_export.benchmark.compare import compare_reports
    from hat_export.benchmark.latency.merge import merged_report
    from hat_export.bundle.bundle import read_manifest
    from hat_export.bundle.graph_check import check_graph
    from hat_export.bundle.signature import check_signature, read_public_key
    from hat_export.data.karpathy import read_karpathy
    from hat_export.data.tables import read_csv, read_jsonl
    from hat_export.errors import HatError
    from hat_export.index import record_format
    from hat_export.index.query import open_index_file
    from hat_export.model.checkpoint import read_state_dict
    from hat_export.model.keys import to_own
    from hat_export.model.spec_inference import infer_spec
    from hat_export.model.torch_file import RestrictedUnpickler
    from hat_export.quantize.plan import read_plan
    from hat_export.spec import ModelSpec

    # Checksums keep a fuzzer out of what lies behind them.
    class Fits(int):
        """A checksum that is never another."""

        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    record_format._is_sealed = lambda block: len(block) == record_format.ALIGNMENT
    record_format.zlib = types.SimpleNamespace(crc32=lambda content, value=0: Fits(0))

    def at(name: str, content: bytes) -> Path:
        path = work / name
        path.write_bytes(content)
        return path

    def manifest(content: bytes) -> None:
        at("manifest.json", content)
        read_manifest(work)

    def graph(content: bytes) -> None:
        with contextlib.suppress(ValueError):
            check_graph(at("x.onnx", content), {})

    def index(content: bytes) -> None:
        opened = open_index_file(at("x.hatidx", content))
        if opened.kind == "images" and len(opened):
            opened.pooled(__import__("numpy").arange(1))  # type: ignore[call-arg]
        elif len(opened):
            opened.take([0])  # type: ignore[union-attr]
        opened.close()

    def karpathy(content: bytes) -> None:
        read_karpathy(at("dataset.json", content), "test")

    def tables(content: bytes) -> None:
        for read, ending in ((read_csv, "csv"), (read_jsonl, "jsonl")):
            with contextlib.suppress(HatError):
                read(at(f"x.{ending}", content), "test")

    def keys(content: bytes) -> None:
        names = content.decode("utf-8", "replace").split("\n")
        shapes = {name[4:]: tuple(map(ord, name[:4])) for name in names}
        own = to_own(shapes).own
        infer_spec({mine: shapes[name] for name, mine in own.items()}, "x")

    def arrays(content: bytes) -> None:
        with contextlib.suppress(ValueError):
            read_arrays(at("x.npz", content))
        with contextlib.suppress(ValueError):
            read_arrays(at("x.safetensors", content))

    def pickled(content: bytes) -> None:
        try:
            RestrictedUnpickler(io.BytesIO(content), work).load()
        except HatError:
            raise
        except Exception:  # read_zip and read_legacy make a CheckpointError of it
            pass

    def report(content: bytes) -> None:
        path = at("x.json", content)
        for use in (lambda: compare_reports(path, path, 0.02), lambda: merged_report([path])):
            with contextlib.suppress(HatError):
                use().to_html()

    def signature(content: bytes) -> None:
        at("manifest.json.minisig", content)
        key = b"untrusted comment: x\nRWQAAAAAAAAAA" + b"A" * 42 + b"==\n"
        for public in (at("fixed.pub", key), at("x.pub", content)):
            with contextlib.suppress(HatError):
                read_public_key(public)
                check_signature(work, public)

    return {
        "manifest": manifest,
        "graph": graph,
        "index": index,
        "karpathy": karpathy,
        "tables": tables,
        "keys": keys,
        "spec": lambda content: void(ModelSpec.parse(content.decode("utf-8", "replace"))),
        "plan": lambda content: void(read_plan(at("plan.json", content))),
        "report": report,
        "pickle": pickled,
        "torch": lambda content: void(read_state_dict(at("x.ckpt", content))),
        "arrays": arrays,
        "signature": signature,
    }


def void(value: object) -> None:
    """Forget a result."""


def main() -> None:
    """Fuzz one parser in this process: ``fuzz.py NAME CORPUS LIBFUZZER-OPTIONS``."""
    import warnings

    import atheris

    warnings.simplefilter("ignore")
    name = sys.argv.pop(1)
    from hat_export.errors import HatError

    with tempfile.TemporaryDirectory(prefix="hat-fuzz-", dir="/dev/shm") as work:
        parse = parsers(Path(work))[name]
        _instrument(atheris)

        def one(content: bytes) -> None:
            with contextlib.suppress(HatError):
                parse(content)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


def _instrument(atheris: Any) -> None:
    """Have every function of the package report its branches.

    atheris's import hook doesn't see modules of an editable installation.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith("hat_export.")]:
        for value in list(vars(module).values()):
            inner = vars(value).values() if isinstance(value, type) else ()
            for function in (value, *(getattr(item, "__func__", item) for item in inner)):
                is_ours = getattr(function, "__module__", None) == module.__name__
                if isinstance(function, types.FunctionType) and is_ours:
                    atheris.instrument_func(function)


if __name__ == "__main__":
    main()
