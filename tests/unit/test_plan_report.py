"""Figures and maps of plans, computed by hand."""

from dataclasses import replace

import numpy as np
import pytest

from restkv_local.catalogue import tracked_by
from restkv_local.plan_picture import draw_plans
from restkv_local.plan_report import PlanFigures, PlanReport, map_plan, measure_plan
from restkv_local.types import EvictionPlan


def keep_rows(*layers, n_kv=10):
    """Make a mask: a list of heads for each layer, a list of rows for each head."""
    keep = np.zeros((len(layers), len(layers[0]), n_kv), bool)
    for layer, heads in enumerate(layers):
        for head, rows in enumerate(heads):
            keep[layer, head, rows] = True
    return keep


def make_report(**plans):
    keeps = {name: np.asarray(keep) for name, keep in plans.items()}
    return PlanReport(
        model="tiny",
        n_tokens=next(iter(keeps.values())).shape[-1],
        budget=3,
        allocation="uniform",
        n_obs=2,
        n_pinned=1,
        n_sink=2,
        n_recent=1,
        layers=[5, 11],
        plans={
            name: EvictionPlan(keep, keep.sum(axis=-1).astype(np.int32))
            for name, keep in keeps.items()
        },
    )


A = keep_rows([[0, 8, 9], [0, 1, 9]], [[7, 8, 9], [0, 5, 9]])


def test_figures_of_unequal_heads():
    b = keep_rows([[0, 9], [9]], [[5, 6, 7, 8, 9], [0, 5, 8, 9]])
    figures = measure_plan(b, A)
    assert figures.kept == pytest.approx(12 / 40)
    assert (figures.rows_min, figures.rows_max) == (1, 5)
    # Of A's three rows: 0 and 9; 9; all; all.
    assert figures.overlap == pytest.approx((2 / 3 + 1 / 3 + 1 + 1) / 4)
    # 9, 9, 35 and 22 are the sums of the positions.
    assert figures.depth == pytest.approx((75 / 12 + 0.5) / 10)
    # The last tenth is row 9, which all four heads keep.
    assert figures.newest == pytest.approx(4 / 12)


def test_a_plan_overlaps_itself_whole():
    assert measure_plan(A, A).overlap == 1


def test_overlap_is_of_the_other_plan():
    """With 9 more rows each, A is contained: 1, and not 3 of 12."""
    assert measure_plan(np.ones_like(A), A).overlap == 1
    assert measure_plan(A, np.ones_like(A)).overlap == pytest.approx(0.3)


def test_all_rows_are_half_way_on_average():
    keep = np.ones((2, 3, 40), bool)
    assert measure_plan(keep, keep) == PlanFigures(
        kept=1, rows_min=40, rows_max=40, overlap=1, depth=0.5, newest=pytest.approx(0.1)
    )


@pytest.mark.parametrize(("n_kv", "n_newest"), [(4, 1), (10, 1), (16, 2), (1000, 100)])
def test_the_last_tenth_is_rounded_to_at_least_one_row(n_kv, n_newest):
    keep = np.ones((1, 1, n_kv), bool)
    assert measure_plan(keep, keep).newest == pytest.approx(n_newest / n_kv)


def test_a_short_text_is_mapped_token_by_token():
    shares, width = map_plan(A)
    assert width == 1
    np.testing.assert_allclose(shares[0], [1, 0.5, 0, 0, 0, 0, 0, 0, 0.5, 1])
    np.testing.assert_allclose(shares[1], [0.5, 0, 0, 0, 0, 0.5, 0, 0.5, 0.5, 1])


def test_columns_average_neighbours_and_the_last_one_fewer():
    shares, width = map_plan(A, n_columns=4)
    assert width == 3
    # Rows 0-2, 3-5, 6-8 and 9 of two heads.
    np.testing.assert_allclose(shares, [[3 / 6, 0, 1 / 6, 1], [1 / 6, 1 / 6, 2 / 6, 1]])


@pytest.mark.parametrize("n_kv", [1, 399, 400, 401, 1423])
def test_no_more_columns_than_asked_for_and_no_token_lost(n_kv):
    keep = np.random.default_rng(0).random((2, 3, n_kv)) < 0.3
    shares, width = map_plan(keep)
    assert shares.shape[1] <= 400
    assert 0 <= n_kv - (shares.shape[1] - 1) * width <= width
    per_column = np.minimum(width, n_kv - width * np.arange(shares.shape[1]))
    assert (shares * per_column).sum() == pytest.approx(keep.sum() / 3)


def test_json_compares_with_the_first_plan():
    report = make_report(restkv=A, fifo=keep_rows([[7, 8, 9]] * 2, [[7, 8, 9]] * 2))
    reply = report.to_json()
    assert reply["layers"] == [5, 11]
    assert [entry["policy"] for entry in reply["policies"]] == ["restkv", "fifo"]
    assert reply["policies"][1]["overlap"] == pytest.approx((2 / 3 + 1 / 3 + 1 + 1 / 3) / 4)
    assert reply["policies"][0]["depth"] == pytest.approx((65 / 12 + 0.5) / 10)


def test_only_what_is_wanted_is_tracked():
    assert tracked_by(["restkv", "fifo"]) == set()
    assert tracked_by(["h2o", "lru", "expected-attention"]) == {"sum", "last_use", "queries"}


@pytest.mark.parametrize("n_plans", [1, 2, 3])
def test_a_picture_has_a_panel_for_each_plan(n_plans, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    names = ["restkv", "h2o", "fifo"][:n_plans]
    path = tmp_path / "map.png"
    draw_plans(make_report(**dict.fromkeys(names, A)), path)
    height, width, _ = imread(path).shape
    assert width > (1.5 * height if n_plans == 2 else height)


def test_a_models_name_is_no_formula(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    draw_plans(replace(make_report(restkv=A), model=r"a $\frac$ b"), path)
    assert path.exists()
