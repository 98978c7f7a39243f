"""An arm keeps its colour, and what a figure carries is small."""

import altair as alt
import pandas as pd
import pytest
import vl_convert

from hybridlib.analysis import theme


def test_a_name_has_one_colour_whoever_stands_beside_it() -> None:
    for names in (["hybrid"], ["baseline", "hybrid"], ["new", "hybrid", "newer"]):
        scale = theme.colour("arm", names).to_dict()["scale"]
        assert dict(zip(scale["domain"], scale["range"]))["hybrid"] == theme.COLOURS["hybrid"]
        assert len(set(scale["range"])) == len(names)


def test_thinning_keeps_the_last_row_of_each_group() -> None:
    frame = pd.DataFrame({"arm": ["a"] * 101 + ["b"] * 3, "step": [*range(101), *range(3)]})
    kept = theme.thinned(frame, ["arm"], 10)
    assert kept.groupby("arm").step.max().tolist() == [100, 2]
    assert (kept.arm == "a").sum() <= 11 and (kept.arm == "b").sum() == 3


def test_small_keeps_significant_digits() -> None:
    out = theme.small(pd.DataFrame({"x": [123456.0, 0.00123456, 0.0, float("inf")]}), 3)
    assert out.x.tolist() == [123000.0, 0.00123, 0.0, float("inf")]


@pytest.mark.parametrize("mark", ["mark_rule", "mark_bar"])
def test_an_empty_cell_is_no_number_also_where_a_channel_has_no_type(mark: str) -> None:
    frame = pd.DataFrame({"row": ["one seed", "three seeds"], "low": [1.0, 1.9], "high": [None, 2.1]})
    chart = getattr(alt.Chart(frame), mark)().encode(y="row:N", x="low:Q", x2="high")
    assert chart.to_dict()["data"]["format"]["parse"] == {"low": "number", "high": "number"}
    assert "one seed; high: null" in vl_convert.vegalite_to_svg(chart.to_json())
