"""The page and the process of a report."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from core.gpu import FakeGpuProbe, Gpu, GpuReading
from core.settings import load_settings
from monitoring.reports import __main__ as process
from monitoring.reports.facts import gather
from monitoring.reports.page import render_page
from monitoring.reports.svg import Series, line_chart
from monitoring.reports.text import render_text

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Tags(html.parser.HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.open = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs


@pytest.fixture
def report(workspace, sample):
    sample.job("rejected", EVIL + ".jsonl", code="bad_json", message=EVIL)
    sample.event(kind="deployed", checkpoint="5-aaaaaaaaaaaa", message=EVIL)
    probe = FakeGpuProbe(GpuReading((Gpu("GPU-aa", EVIL, utilization_percent=40.0),)))
    return gather(workspace, load_settings(workspace, env={}), probe, "2000-01-01T00:00:00Z")


def test_nothing_that_files_or_machines_say_becomes_markup(report):
    page = render_page(report)
    tags = Tags(page)
    assert not tags.names & {"script", "img", "iframe", "link", "object", "form", "a"}
    assert not [name for name, _value in tags.attributes if name.startswith("on")]
    assert "alert(1)" in page


def test_the_page_is_self_contained_and_forbids_everything_from_elsewhere(report):
    page = render_page(report)
    assert "default-src 'none'" in page
    assert not {"src", "href"} & {name for name, _value in Tags(page).attributes}
    assert not re.search(r"url\(|@import|https?://", page)


def test_text_and_page_tell_the_same_numbers(report):
    text, page = render_text(report), render_page(report)
    for number in (str(report["training"]["steps"]), str(report["training"]["row_passes"])):
        assert number in text
        assert number in page


def test_a_chart_is_valid_xml_with_a_line_for_each_unbroken_run():
    svg = line_chart(
        [
            Series("train", [(1, 3.0), (2, 2.5), (3, None), (4, 2.0), (5, 1.9)], "train"),
            Series("b<", [(3, 2.2)], "held"),
        ],
        x_label="step",
        y_label="loss",
    )
    root = ElementTree.fromstring(svg)
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert [len(e.get("points").split()) for e in lines] == [2, 2, 1]
    assert [e.get("class") for e in root.iter() if e.tag.endswith("circle")] == ["held"]


@pytest.mark.parametrize("points", [[(1, 1.0)], [(1, 0.0), (2, 0.0)], [(1, 1e-9), (2, 1e9)], [(5, -3.0), (5, -3.0)]])
def test_any_range_of_numbers_can_be_drawn(points):
    root = ElementTree.fromstring(line_chart([Series("x", points, "train")], x_label="x", y_label="y"))
    spots = [
        float(n)
        for e in root.iter()
        if e.tag.endswith("polyline")
        for p in e.get("points").split()
        for n in p.split(",")
    ]
    assert all(math.isfinite(n) for n in spots)


def test_without_points_there_is_a_note_and_no_chart():
    assert "<svg" not in line_chart([Series("x", [(1, None)], "train")], x_label="x", y_label="y")


def test_the_process_prints_writes_the_page_and_files_the_daily_report(
    workspace, sample, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(process, "NvmlProbe", FakeGpuProbe)
    page = tmp_path / "out.html"
    assert process.main(["--root", str(workspace.root), "--html", str(page), "--since", "7d"]) == 0
    assert capsys.readouterr().out.startswith("Dropforge ")
    assert page.read_text().startswith("<!doctype html>")
    assert process.main(["--root", str(workspace.root), "--json", "--send"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "report.v1"
    assert sorted(p.suffix for p in (workspace.status_dir / "reports").iterdir()) == [".html", ".txt"]


def test_the_process_explains_a_bad_period_in_one_line(workspace, capsys):
    assert process.main(["--root", str(workspace.root), "--since", "soon"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
