"""Reports and pages show hostile names as text: no element, no attribute, no address of theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from hat_export.benchmark.latency.compare import compare_runs, comparison_report
from hat_export.benchmark.latency.merge import merged_report
from hat_export.benchmark.latency.report import latency_report
from hat_export.benchmark.profile.report import Profile, profile_report
from hat_export.benchmark.profile.trace import Event, Trace
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.inspect import bundle_report
from hat_export.report.report import Card, Gallery, Item, Picture, Report, Table, write_report
from hat_export.report.search_page import Shown, caption_page, image_gallery
from latency_samples import made_up_case, made_up_run

HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(1)" x="',
    "' onerror='alert(1)' x='",
    "</style><img src=x onerror=alert(1)>",
    "</title></svg></table><iframe src=//evil>",
    "&lt;script&gt; <!-- ]]> javascript:alert(1) \u2028\x00\ud800",
)
#: What reports are made of.
ELEMENTS = set(
    "html head meta title style body main header section div h1 h2 h3 h4 p strong b small br wbr "
    "ol ul li a span table thead tbody tr th td caption figure figcaption img "
    "svg g defs path rect line text tspan circle polyline polygon desc".split()
)


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:image/", "#")), (tag, name, value)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check(page: str, shown: bool = True) -> None:
    found = "".join(Page(page).texts)
    if shown:
        assert any(name.split("\u2028")[0].split(" ")[0] in found for name in HOSTILE)


@pytest.mark.parametrize("evil", HOSTILE)
def test_every_part_of_a_report(evil: str, tmp_path: Path) -> None:
    item = Item(evil, evil, Picture(b"x", "image/png", evil), True)
    table = Table(evil, (evil, evil), ((evil, evil),), evil)
    gallery = Gallery(evil, evil, (Card(evil, item, ((evil, (item, item)),)),))
    report = Report("x", evil, None, (evil, evil), (table,), {}, galleries=(gallery,))
    write_report(report, tmp_path / "x.html")
    check((tmp_path / "x.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("evil", HOSTILE)
def test_pages_of_search(evil: str) -> None:
    shown = [Shown(evil, 1.0), Shown(evil, 0.5, Image.new("RGB", (4, 4)), evil)]
    shown.append(Shown(evil, 0.1, None, evil))
    check(image_gallery(evil, evil, shown))
    check(caption_page(evil, Image.new("RGB", (4, 4)), evil, shown))


@pytest.mark.parametrize("evil", HOSTILE)
def test_latency_alone_compared_and_merged(evil: str, tmp_path: Path) -> None:
    run = made_up_run(made_up_case(3.0, evil), made_up_case(2.0, "b" + evil, seed=1))
    run = replace(run, environment={"machine": {evil: evil}, "versions": {evil: evil}})
    check(latency_report(run, {evil: 300.0, "b" + evil: 290.0}).to_html())
    changes = compare_runs(run, run, 0.02)
    check(comparison_report(run, run, changes, (evil, evil), 0.02).to_html())
    path = tmp_path / f"{evil.replace('/', '').replace(chr(0), '')[:20]}.json"
    path.write_text(latency_report(run).to_json())
    other = tmp_path / "other.json"
    content = {"kind": evil, "version": 1, "data": {}, "summary": [evil]}
    other.write_text(json.dumps(content))
    check(merged_report([path, other]).to_html())


@pytest.mark.parametrize("evil", HOSTILE)
def test_a_look_into_a_bundle(evil: str, bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["spec"]["name"] = evil
    manifest["tools"] = {evil: evil}
    manifest["checkpoint"] |= {"file": evil, evil: [evil]}
    manifest["graphs"]["image"]["kept_fp32"] = {evil: evil}
    manifest["graphs"]["image"]["inputs"][0]["shape"][0] = evil
    path.write_text(json.dumps(manifest))
    report = bundle_report(Bundle.read(bundle_copy), True)
    check(report.to_html())
    report.to_markdown()


@pytest.mark.parametrize("evil", HOSTILE)
def test_profiles(evil: str) -> None:
    events = tuple(Event(evil, f"{evil}{n}", f"{evil}.{n}", 0, 1e-3) for n in range(3))
    profile = Profile(evil, evil, 0.004, Trace(events, (0.005,)), 0)
    check(profile_report(evil, [profile], 2, {evil: {evil: evil}}).to_html())


def test_parity_of_a_hostile_dataset(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from hat_export.api import check_parity
    from hat_export.parity.diff import compare_parity
    from hat_export.parity.report import parity_report

    entries = []
    names = [name for name in HOSTILE if "\x00" not in name]
    for number, evil in enumerate(names):
        file = f"{evil.replace('/', '_')}{number}.png"
        Image.effect_noise((20 + number, 20), 90).convert("RGB").save(tmp_path / file)
        sentences = [{"raw": f"{evil} {number}"}, {"raw": f"{number} {evil}"}]
        entries.append({"filename": file, "split": "test", "sentences": sentences})
    content = {"dataset": names[0], "images": entries}
    (tmp_path / "dataset_x.json").write_text(json.dumps(content))
    outcome = check_parity(
        tiny_bundle, tiny_bundle, tmp_path, captions=2, attribution=True, threads=1
    )
    report = parity_report(outcome)
    check(report.to_html())
    both = json.loads(report.to_json())
    check(compare_parity(both, both, (names[0], names[1])).to_html())
