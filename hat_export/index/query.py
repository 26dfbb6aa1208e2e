"""Answers from an index: images for a text, captions for an image, and the page that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hat_export.base.closing import Closing
from hat_export.base.machine import default_threads
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.signature import check_signature
from hat_export.data.preprocess import open_image
from hat_export.data.sources import ImageReader, list_images
from hat_export.errors import DatasetError, HatError, IndexFileError, InputError
from hat_export.index.build import Index, model_name, origin_of
from hat_export.index.captions import CaptionIndex
from hat_export.index.images import ImageIndex
from hat_export.index.record_file import RecordFile
from hat_export.index.search import Hits
from hat_export.report.search_page import Shown, caption_page, image_gallery
from hat_export.runtime.backends import open_checked
from hat_export.runtime.session import Session


@dataclass(frozen=True)
class OpenSearch(Closing):
    """An index with the session of its model.

    The index file has only the hash of the projections that searching takes; the session has read
    them, and has given them to the index.

    Attributes:
        index: Of images or captions, with its projections.
        session: Of the bundle it was made with.
    """

    index: Index
    session: Session

    def close(self) -> None:
        """Release both."""
        self.session.close()
        self.index.close()


def open_index_file(path: Path) -> Index:
    """An index of either kind.

    Raises:
        IndexFileError: if it is missing, damaged or no index of images or captions.
    """
    if not path.is_file():
        raise IndexFileError(f"{path}: no such index; make one with `hat-export index`")
    file = RecordFile.open(path)
    kinds: dict[str, type[Index]] = {kind.kind: kind for kind in (ImageIndex, CaptionIndex)}
    kind = kinds.get(str(file.metadata.get("kind")))
    if kind is None:
        raise IndexFileError(
            f"{path}: an index of {file.metadata.get('kind')}; expected one of {', '.join(kinds)}"
        )
    return kind(file)


def open_search(
    path: Path,
    bundle: Path | None = None,
    backend: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = True,
    require_signature: Path | None = None,
) -> OpenSearch:
    """An index and its model, ready to answer.

    Args:
        path: The index.
        bundle: The model; None: the bundle that the index says it was made with.
        backend: What runs the bundle.
        threads: Default: one per core.
        verify: Whether to check the bundle's hashes and run its self-test.
        require_signature: Public key that must have signed the bundle.

    Raises:
        IndexFileError: if the index can't be used, or belongs to another model.
        InputError: if it was made with other projections than the bundle's.
        BundleError: if the bundle can't be used.
    """
    index = open_index_file(path)
    try:
        folder = bundle or origin_of(index).bundle
        if folder is None or not folder.exists():
            raise IndexFileError(
                f"{path}: its bundle is not at {folder}; name it with --bundle"
                if folder
                else f"{path}: doesn't say which bundle it was made with; name it with --bundle"
            )
        if require_signature is not None:  # before anything of it is parsed
            check_signature(folder, require_signature)
        check_model(index, Bundle.read(folder, verify=False))
        cores = threads or default_threads()
        session = open_checked(folder, backend, cores, verify, require_signature)
        try:
            index.use(session.projections)
        except BaseException:
            session.close()
            raise
    except BaseException:
        index.close()
        raise
    return OpenSearch(index, session)


def check_model(index: Index, bundle: Bundle) -> None:
    """Refuse an index of another model than a bundle's.

    Raises:
        IndexFileError: naming both.
    """
    # Layouts follow from the spec, so that a name alone would not do.
    same = model_name(bundle) == index.file.metadata["model"]
    if not same or replace(index.spec, name="") != replace(bundle.manifest.spec, name=""):
        raise IndexFileError(
            f"{index.file.path}: was made with another model than {bundle.path}; name its bundle "
            "with --bundle"
        )


def found_images(opened: OpenSearch, text: str, top_k: int, rescore: int | None) -> Hits:
    """The best images for a text.

    Args:
        opened: An index of images.
        text: What to look for.
        top_k: Images wanted.
        rescore: Candidates that are scored exactly; None for all.

    Raises:
        InputError: if the text is blank, or the index is of captions.
    """
    if not isinstance(opened.index, ImageIndex):
        raise InputError(
            f"{opened.index.file.path}: an index of captions is searched by an image: --image FILE"
        )
    if not text.strip():
        raise InputError("an empty text finds nothing; expected a description of the images")
    session = opened.session
    texts = session.encode_texts([text])
    (hits,) = opened.index.search(texts, top_k, "pooled", rescore, session.threads)
    return hits


def found_captions(opened: OpenSearch, image: Path, top_k: int, rescore: int | None) -> Hits:
    """The best captions for an image.

    Args:
        opened: An index of captions.
        image: The picture's file.
        top_k: Captions wanted.
        rescore: Candidates that are scored exactly; None for all.

    Raises:
        InputError: if the image can't be read, or the index is of images.
    """
    if not isinstance(opened.index, CaptionIndex):
        raise InputError(
            f"{opened.index.file.path}: an index of images is searched by a text; for captions "
            "make an index with `hat-export index --captions`"
        )
    session = opened.session
    images = session.reduce_images([image])
    (hits,) = opened.index.search(images, top_k, rescore, session.threads)
    return hits


def hits_page(
    opened: OpenSearch,
    query: str | Path,
    hits: Hits,
    facts: str,
    sources: Sequence[Path] | None = None,
) -> str:
    """The results as one HTML page.

    Args:
        opened: What was searched.
        query: The text, or the path of the image.
        hits: The results.
        facts: A line below the query.
        sources: Where the pictures are; default: where they were indexed.

    Raises:
        DatasetError: if a source that was named can't be read.
    """
    scores = hits.scores.tolist()
    if isinstance(query, Path):
        shown = [Shown(name, score) for name, score in zip(hits.ids, scores, strict=True)]
        return caption_page(query.name, open_image(query), facts, shown)
    pictures = _pictures(hits.ids, sources, origin_of(opened.index).sources)
    shown = []
    for name, score in zip(hits.ids, scores, strict=True):
        picture, missing = pictures.get(name, (None, "The picture is not where it was indexed."))
        shown.append(Shown(name, score, picture, missing))
    return image_gallery(query, facts, shown)


def _pictures(
    names: Iterable[str], named: Sequence[Path] | None, noted: Sequence[Path]
) -> dict[str, tuple[Image.Image | None, str]]:
    """Of each name that is found: its picture, or None and why it can't be shown."""
    wanted = set(names)
    found: dict[str, tuple[Image.Image | None, str]] = {}
    with ImageReader() as reader:
        for source in named or noted:
            try:
                for ref in list_images([source]):
                    if ref.name in wanted and ref.name not in found:
                        try:
                            found[ref.name] = (open_image(reader.read(ref)), "")
                        except InputError as error:
                            found[ref.name] = (None, str(error))
                    if len(found) == len(wanted):
                        return found
            except HatError as error:
                if named or not isinstance(error, DatasetError):
                    raise
    return found
