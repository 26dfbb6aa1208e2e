"""Graphs of one layout to localize in: of two bundles, or of a checkpoint and a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import Bundle, is_bundle
from hat_export.data.dataset import CaptionDataset
from hat_export.parity.localize import Localization, bound_of, localize_difference
from hat_export.runtime.backends.emulation_backend import emulated
from hat_export.runtime.backends.onnxruntime_backend import PACKED_ATTENTION
from hat_export.runtime.session import Session

#: Images and captions that layers are compared on.
IMAGES, CAPTIONS = 8, 16
GRAPHS = ("image", "text")
LOW_PRECISIONS = ("fp16", "bf16")

Feeds = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Probe:
    """Inputs on which layers are compared.

    Attributes:
        feeds: Per graph, its inputs.
        threads: Threads of the runtime.
    """

    feeds: Feeds
    threads: int


def make_probe(session: Session, dataset: CaptionDataset) -> Probe:
    """Images spread over a dataset, and captions of its commonest length, which need no padding.

    Args:
        session: Preprocesses and tokenizes.
        dataset: Images and captions.
    """
    total = len(dataset.entries)
    count = min(total, IMAGES)
    names = [dataset.entries[index * total // count].name for index in range(count)]
    pixels = session.preprocess([dataset.store.open(name) for name in names])
    ids, mask = session.tokenizer.encode(dataset.captions)
    lengths = mask.sum(1)
    commonest = int(np.bincount(lengths).argmax())
    chosen = np.flatnonzero(lengths == commonest)
    some = min(len(chosen), CAPTIONS)
    chosen = chosen[np.arange(some) * len(chosen) // some]
    text = {
        "input_ids": ids[chosen, :commonest],
        "attention_mask": mask[chosen, :commonest],
    }
    return Probe({"image": {"pixel_values": pixels}, "text": text}, session.threads)


def localize_between(
    reference: Path,
    open_reference: Callable[[], Session],
    candidate: Path,
    probe: Probe,
    progress: Progress = SILENT,
) -> tuple[Localization, ...]:
    """Compare the encoders' graphs layer by layer.

    A checkpoint is exported anew, in memory and in float32, in the candidate's layout. Graphs of
    low precision run with their roundings emulated, as a GPU computes them.

    Args:
        reference: Bundle or checkpoint.
        open_reference: Opens a session on it.
        candidate: A bundle with ONNX graphs.
        probe: From :func:`make_probe`.
        progress: Told inside long loops.

    Raises:
        InputError: if the layouts differ.
        BundleError: if a graph can't be loaded.
    """
    bundle = Bundle.read(candidate, verify=False)
    manifest = bundle.manifest
    packed = manifest.attention_form == PACKED_ATTENTION
    right = _reference_graphs(reference, open_reference, manifest.attention_form)
    found = []
    for name in GRAPHS:
        judged = _load(bundle, name)
        found.append(
            localize_difference(
                name,
                right[name](),
                judged,
                probe.feeds[name],
                bound_of(manifest.precision),
                packed,
                probe.threads,
                progress,
            )
        )
    return tuple(found)


def _reference_graphs(
    reference: Path, open_reference: Callable[[], Session], form: str
) -> dict[str, Callable[[], onnx.ModelProto]]:
    if is_bundle(reference):
        bundle = Bundle.read(reference, verify=False)
        return {name: partial(_load, bundle, name) for name in GRAPHS}
    from hat_export.export.attention import AttentionForm
    from hat_export.export.pipelines import build_graph
    from hat_export.runtime.backends.torch_backend import TorchSession

    with open_reference() as session:
        assert isinstance(session, TorchSession)
        weights = {name: tensor.numpy() for name, tensor in session.model.state_dict().items()}
        spec = session.spec

    def built(name: str) -> onnx.ModelProto:
        return build_graph(name, spec, weights, cast(AttentionForm, form))[0]

    return {name: partial(built, name) for name in GRAPHS}


def _load(bundle: Bundle, name: str) -> onnx.ModelProto:
    model = onnx.load(bundle.graph_path(name))
    return emulated(model) if bundle.manifest.precision in LOW_PRECISIONS else model
