from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from helix_jobs.bench.chart import Series, check_chart_path, draw_svg, nice_step
from helix_jobs.errors import ConfigurationError

SVG = "{http://www.w3.org/2000/svg}"
LINES = (
    Series("speculation off", ((1, 60.0), (8, 390.0), (64, 1120.0))),
    Series("a & b <adaptive>", ((1, 95.0), (64, 1100.0))),
    Series("vllm", ((1, 74.0), (8, 349.0), (64, 717.0)), is_peer=True),
)


def drawn(series=LINES):
    return ET.fromstring(draw_svg(series, "Title <1>", "under it"))  # noqa: S314  (our own text)


def dots(tree):
    return [(float(c.get("cx")), float(c.get("cy")), c.get("fill")) for c in tree.iter(f"{SVG}circle")]


def test_every_point_stands_where_its_value_is():
    tree = drawn()
    assert len(dots(tree)) == 8
    by_line = [[dot for dot in dots(tree) if dot[2] == colour] for colour in dict.fromkeys(d[2] for d in dots(tree))]
    for line, found in zip(LINES, by_line, strict=True):
        heights = [value for _, value in line.points]
        # y is an affine function of the value, the same for all, downwards
        (x0, y0, _), (x1, y1, _) = found[0], found[-1]
        assert x0 < x1
        assert (y0 - y1) / (heights[-1] - heights[0]) == pytest.approx(0.312 * 1000 / 1250, rel=0.01)
    places = {round(x, 1) for x, _, _ in dots(tree)}
    assert len(places) == 3, "one column a batch size"
    left, middle, right = sorted(places)
    assert middle - left == pytest.approx(right - middle, abs=0.2)


def test_everything_stays_inside_the_picture():
    tree = drawn()
    width, height = (float(size) for size in tree.get("viewBox").split()[2:])
    for x, y, _ in dots(tree):
        assert 0 < x < width
        assert 0 < y < height
    labels = [text for text in tree.iter(f"{SVG}text") if text.get("x")]
    assert all(0 < float(text.get("x")) < width for text in labels)


def test_lines_are_named_and_peers_dashed():
    tree = drawn()
    texts = ["".join(text.itertext()) for text in tree.iter(f"{SVG}text")]
    assert {"speculation off", "a & b <adaptive>", "vllm", "Title <1>", "under it", "batch size", "8"} <= set(texts)
    assert [line.get("stroke-dasharray") for line in tree.iter(f"{SVG}polyline")] == [None, None, "6 4"]


@pytest.mark.parametrize("series", [(), (Series("one", ((4, 0.0),)),), (Series("one", ((4, 3.0),)),)])
def test_little_data_is_drawn_too(series):
    assert len(dots(drawn(series))) == len(series)


@pytest.mark.parametrize(("highest", "step"), [(0, 1), (5, 1), (5.1, 2), (1120, 250), (99, 20), (0.04, 0.01)])
def test_ticks_are_round(highest, step):
    assert nice_step(highest) == pytest.approx(step)


@pytest.mark.parametrize("name", ["chart.pdf", "chart.png", "chart", "svg"])
def test_other_files_are_refused(name):
    with pytest.raises(ConfigurationError, match=r"name one that ends with \.svg"):
        check_chart_path(Path(name))
    check_chart_path(Path("CHART.SVG"))


def test_colours_do_not_run_out():
    many = tuple(Series(f"line {i}", ((1, float(i)),)) for i in range(20))
    assert len(re.findall("<polyline", draw_svg(many, "t", "s"))) == 20
