"""Search from the command line: images for a text, captions for an image, and their pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hat_export.cli.export import app
from hat_export.errors import HatError, IndexFileError, InputError
from hat_export.index.captions import CaptionIndex
from hat_export.index.query import found_captions, found_images, open_search
from hat_export.report.search_page import Shown, image_gallery
from hat_export.runtime.backends.opening import open_bundle
from hat_export.score.features import ReducedImages
from picture_samples import pictures, write_folder, write_zip

TEXTS = ["a dog", "a cat on a mat", "two people in a boat", "a red balloon", "the moon at night"]


@pytest.fixture(scope="module")
def indexes(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/``, ``i.hatidx`` of them, and ``c.hatidx`` of captions."""
    folder = tmp_path_factory.mktemp("search")
    names = {f"<b>&{name}": data for name, data in pictures(12).items()}
    write_folder(folder / "images", names)
    (folder / "captions.txt").write_text("\n".join(TEXTS))
    for arguments in (
        ["index", str(tiny_bundle), str(folder / "images"), str(folder / "i.hatidx"), "-q"],
        [
            *("index", str(tiny_bundle), str(folder / "captions.txt"), str(folder / "c.hatidx")),
            *("--captions", "-q"),
        ],
    ):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["search", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_exact_search_ranks_as_the_session_scores(tiny_bundle: Path, indexes: Path) -> None:
    paths = sorted((indexes / "images").iterdir())
    with open_bundle(tiny_bundle, threads=1, verify=False) as session:
        scores = session.score(session.encode_images(paths), session.encode_texts(TEXTS))
    with open_search(indexes / "i.hatidx", threads=1, verify=False) as opened:
        for number, text in enumerate(TEXTS):
            hits = found_images(opened, text, 12, None)
            order = [paths.index(indexes / "images" / name) for name in hits.ids]
            # float16 storage: tests/index/test_search.py has the bound of a score.
            assert np.abs(scores[order, number] - hits.scores).max() < 5e-3
            assert np.all(np.diff(hits.scores) <= 0)
    with open_search(indexes / "c.hatidx", threads=1, verify=False) as opened:
        for number, path in enumerate(paths[:3]):
            hits = found_captions(opened, path, 5, None)
            order = [TEXTS.index(name) for name in hits.ids]
            assert np.abs(scores[number, order] - hits.scores).max() < 1e-5
            assert list(hits.ids) == [TEXTS[n] for n in np.argsort(-scores[number])]


def test_two_stages_of_captions_rank_their_candidates_exactly(indexes: Path) -> None:
    with open_search(indexes / "c.hatidx", threads=1, verify=False) as opened:
        index = opened.index
        assert isinstance(index, CaptionIndex)
        images = opened.session.reduce_images(sorted((indexes / "images").iterdir())[:4])
        exact = index.search(images, 5)
        two = index.search(images, 2, rescore=3)
        for whole, part in zip(exact, two, strict=True):
            known = dict(zip(whole.ids, whole.scores.tolist(), strict=True))
            assert [known[name] for name in part.ids] == part.scores.tolist()
        assert index.pooled().shape == (5, 3 * index.spec.dim)
        with pytest.raises(InputError, match="top_k"):
            index.search(images, 3, rescore=2)
        with pytest.raises(InputError, match="level 1"):
            index.search(ReducedImages(images.levels[::-1]), 1)


class _Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_picture_and_escapes_names(indexes: Path, tmp_path: Path) -> None:
    page = tmp_path / "found.html"
    output = run(indexes / "i.hatidx", "a <i>dog</i>", "-k", "5", "--html", page)
    assert "12 of 12 images scored exactly" in output
    parsed = _Page(page.read_text())
    shown = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert len(shown) == 5
    assert all(str(one["src"]).startswith("data:image/webp;base64,") for one in shown)
    assert all(str(one["alt"]).startswith("<b>&") for one in shown)
    assert not {tag for tag, _ in parsed.tags} & {"b", "i", "script", "link"}
    assert "a <i>dog</i>" in parsed.text
    assert not re.search(r"https?://", page.read_text())


def test_pictures_that_moved_are_named_or_found_elsewhere(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write_zip(tmp_path / "some.zip", pictures(3))
    out, page = tmp_path / "i.hatidx", tmp_path / "p.html"
    CliRunner().invoke(app, ["index", str(tiny_bundle), str(source), str(out), "-q"])
    (tmp_path / "moved").mkdir()
    moved = source.rename(tmp_path / "moved" / "some.zip")
    run(out, "a dog", "--html", page)
    assert page.read_text().count("not where it was indexed") == 3
    run(out, "a dog", "--html", page, "--images", moved)
    assert page.read_text().count("data:image/webp") == 3


def test_an_image_finds_captions(indexes: Path, tmp_path: Path) -> None:
    picture = min((indexes / "images").iterdir())
    found = json.loads(run(indexes / "c.hatidx", "--image", picture, "--json", "-k", "3"))
    assert len(found["results"]) == 3
    assert {one["id"] for one in found["results"]} <= set(TEXTS)
    page = tmp_path / "c.html"
    run(indexes / "c.hatidx", "--image", picture, "--html", page)
    assert all(text in _Page(page.read_text()).text for text in TEXTS)


def test_wrong_questions_are_answered_with_a_remedy(
    indexes: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    images, captions = indexes / "i.hatidx", indexes / "c.hatidx"
    picture = min((indexes / "images").iterdir())
    with pytest.raises(InputError, match="one of them"):
        run(images)
    with pytest.raises(InputError, match="--image FILE"):
        run(captions, "a dog")
    with pytest.raises(InputError, match="hat-export index --captions"):
        run(images, "--image", picture)
    with pytest.raises(InputError, match="empty text"):
        run(images, " ")
    with pytest.raises(IndexFileError, match="no such index"):
        run(tmp_path / "none.hatidx", "a dog")
    with pytest.raises(IndexFileError, match="name it with --bundle"):
        run(images, "a dog", "--bundle", tmp_path / "none")
    broken = tmp_path / "broken.hatidx"
    broken.write_bytes(images.read_bytes()[:9000])
    with pytest.raises(HatError, match="broken"):
        run(broken, "a dog")


def test_a_page_shows_transparent_and_odd_pictures() -> None:
    odd = [Image.new("LA", (1, 900), 0), Image.new("P", (900, 1)), Image.new("RGBA", (2, 2))]
    page = image_gallery("q", "f", [Shown(str(n), 0.0, picture) for n, picture in enumerate(odd)])
    assert page.count("data:image/webp") == 3
