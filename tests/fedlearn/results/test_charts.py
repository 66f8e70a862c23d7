"""Charts stand missing, equal, endless and extreme values, and escape names."""

from __future__ import annotations

import math
import re

import pytest

from fedlearn.results.charts import MOST_SERIES, Mark, Row, Series, curves, dumbbells, ticks

MARK = Mark(value=0.5, name="pooled", style="pooled")
EVIL = "<script>alert(1)</script>\x1b[31m"


def test_missing_and_equal_values() -> None:
    svg = curves([Series(name="auc", points=[(1, 0.5)])], [MARK], name="AUC")
    assert svg.count('class="dot s0"') == 2  # a wide and a narrow one
    rows = [Row(name="a", left=math.nan, right=0.5), Row(name="b", left=0.5, right=0.5)]
    svg = dumbbells(rows, [MARK], name="AUC", left_name="alone", right_name="together")
    assert svg.count('class="dot alone"') == 2
    assert svg.count('class="dot federated"') == 4
    assert "nan" not in svg


def test_without_values_there_is_no_chart() -> None:
    nothing = Series(name="a", points=[(1, math.nan), (2, math.inf), (3, 1e308)])
    assert curves([nothing], [MARK], name="loss") == ""
    assert curves([], name="loss") == ""
    rows = [Row(name="a", left=math.nan, right=math.nan)]
    assert dumbbells(rows, name="x", left_name="l", right_name="r") == ""


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.58, 0.65),
        (0.0, 1.0),
        (0.5, 0.5),
        (-3.0, 120.0),
        (0.0, 0.0),
        (1e-12, 2e-12),
        (-1e299, 1e299),
    ],
)
def test_ticks_span_the_values(low: float, high: float) -> None:
    scale = ticks(low, high)
    assert scale[0] <= low
    assert scale[-1] >= high
    assert 2 <= len(scale) <= 8
    assert scale == sorted(set(scale))


def test_every_point_is_inside_the_drawing() -> None:
    points = [(float(n), math.sin(n) * 1e6) for n in range(1, 40)]
    svg = curves([Series(name="a", points=points)], [MARK], name="a")
    boxes = [tuple(map(int, box)) for box in re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)]
    for (width, height), drawing in zip(boxes, svg.split("<svg")[1:], strict=True):
        drawn = re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', drawing)
        assert len(drawn) == 39
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in drawn)


def test_many_points_are_thinned_and_the_last_one_stays() -> None:
    points = [(float(n), float(n)) for n in range(1, 25_001)]
    svg = curves([Series(name="a", points=points)], name="a")
    assert len(svg) < 60_000
    assert "to 2.5e+04" in svg


def test_curves_that_look_alike_are_refused() -> None:
    many = [Series(name=str(n), points=[(1, 1.0)]) for n in range(MOST_SERIES + 1)]
    with pytest.raises(ValueError, match="9 curves; at most 8"):
        curves(many, name="a")
    svg = curves(many[:MOST_SERIES], name="a")
    assert svg.count("legend") == 1
    assert 'class="s7"' in svg


def test_names_cannot_be_markup() -> None:
    page: str = curves(
        [Series(name=EVIL, points=[(1, 1.0)]), Series(name="b", points=[(1, 2.0)])],
        [Mark(value=1.0, name=EVIL, style="pooled")],
        name=EVIL,
        x_name=EVIL,
    )
    rows = [Row(name=EVIL, left=0.0, right=1.0)]
    page += dumbbells(rows, name=EVIL, left_name=EVIL, right_name=EVIL)
    assert "<script" not in page
    assert "\x1b" not in page
