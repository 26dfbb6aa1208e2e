"""``python demo/train``: train the tiny demo model on EmojiCap from scratch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

# Run as a folder: the package `train` itself has to be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hat_export.errors import HatError, OutputError

#: glibc hands large tensors back to the kernel after every step and page-faults them in again.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python demo/train", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with dataset_emojicap.json and its zips")
    parser.add_argument("vocabulary", type=Path, help="bert-base-uncased vocab.txt, to be trimmed")
    parser.add_argument("out", type=Path, help="folder for the state, the log and the model")
    parser.add_argument("--pooled-steps", type=int, default=4000)
    parser.add_argument("--alignment-steps", type=int, default=2000)
    parser.add_argument("--hinge-steps", type=int, default=300)
    parser.add_argument("--init", type=Path, help="start from these weights (last.pt of a run)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Run the three stages and report recall on every split."""
    arguments = _arguments()
    import torch

    from hat_export.data.karpathy import read_karpathy
    from hat_export.data.preprocess import ImagePreprocessor
    from hat_export.data.tokenizer import CaptionTokenizer
    from hat_export.model.checkpoint import save_checkpoint
    from hat_export.model.hat import HAT
    from hat_export.spec import TINY
    from train.data import TrainingSet, hold_out, trimmed_vocabulary
    from train.loop import Stage, Trainer, evaluate

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    if (arguments.out / "model").exists():
        raise OutputError(f"{arguments.out / 'model'}: exists already; choose another folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept, test_seen = hold_out(read_karpathy(arguments.data, "train"))
    pieces = trimmed_vocabulary(arguments.vocabulary, kept.captions, TINY.max_words)
    vocabulary = arguments.out / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    spec = replace(TINY, vocab_size=len(pieces))
    (arguments.out / "spec.json").write_text(json.dumps(spec.to_json(), indent=1) + "\n")
    tokenizer = CaptionTokenizer.from_vocabulary(vocabulary, spec.max_words)
    preprocess = ImagePreprocessor.from_spec(spec)
    model = HAT(spec, drop_path=0.1, dropout=0.1)
    if arguments.init:
        model.load_state_dict(torch.load(arguments.init, weights_only=True))
    training = TrainingSet.load(kept, preprocess, tokenizer)
    validation = read_karpathy(arguments.data, "val")
    print(f"{len(kept.entries)} drawings to train on, {len(pieces)} word pieces", flush=True)
    trainer = Trainer(
        model, training, validation, preprocess, tokenizer, arguments.out, arguments.seed
    )
    stages = (
        Stage("pooled", arguments.pooled_steps, 64, 2, 8e-4, "cosine", 1.0),
        Stage("alignment", arguments.alignment_steps, 64, 2, 5e-4, "cosine", 0.8),
        Stage("hinge", arguments.hinge_steps, 96, 1, 5e-5, "step", 0.5, frozen_steps=100),
    )
    for stage in stages:
        if stage.steps:
            trainer.run(stage)
    best = HAT(spec)
    best.load_state_dict(torch.load(arguments.out / "best.pt", weights_only=True))
    save_checkpoint(arguments.out / "model", best.eval(), vocabulary)
    results = {}
    for dataset in (validation, read_karpathy(arguments.data, "test"), test_seen):
        results[dataset.name] = evaluate(best, dataset, preprocess, tokenizer).to_json()
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.environ.update(MALLOC)
        os.execv(sys.executable, [sys.executable, str(Path(__file__).parent), *sys.argv[1:]])
    try:
        main()
    except HatError as error:
        sys.exit(f"error: {error}")
