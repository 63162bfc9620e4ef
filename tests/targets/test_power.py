"""Layer-wise frequency scaling: against every choice there is, and against what must hold."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoomc.targets.errors import PowerLimitError
from zoomc.targets.power import Energy, Load, Supply, layerwise, milliwatts, outcome, per_network

SUPPLY = Supply((200, 400, 800), (0.6, 0.7, 0.9), 100.0)
LOADS = st.lists(
    st.builds(
        Load,
        st.just("x"),
        st.floats(1e3, 1e6),
        st.floats(0, 1e4),
        st.floats(1e2, 1e6),
        st.floats(0, 1e4),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(LOADS, st.floats(150, 3000))
def test_no_other_choice_of_clocks_under_the_limit_is_faster_or_as_fast_with_lower_clocks(
    loads, limit
):
    top = len(SUPPLY.mhz) - 1
    allowed = [
        levels
        for levels in itertools.product(range(3), repeat=len(loads))
        if all(milliwatts(x, SUPPLY, k, top) <= limit for x, k in zip(loads, levels, strict=True))
    ]
    if not allowed:
        with pytest.raises(PowerLimitError, match="raise the limit"):
            layerwise(loads, SUPPLY, limit)
        return
    found = layerwise(loads, SUPPLY, limit)
    fastest = min(outcome(loads, SUPPLY, levels, top).nanoseconds for levels in allowed)
    assert found.nanoseconds == pytest.approx(fastest)
    assert found.levels in allowed
    for levels in allowed:
        same = outcome(loads, SUPPLY, levels, top).nanoseconds <= found.nanoseconds
        assert not same or sum(levels) >= sum(found.levels)


@settings(max_examples=60, deadline=None)
@given(LOADS, st.floats(300, 3000))
def test_one_level_for_all_is_the_highest_that_every_layer_keeps(loads, limit):
    kept = [k for k in range(3) if all(milliwatts(x, SUPPLY, k, k) <= limit for x in loads)]
    if not kept:
        with pytest.raises(PowerLimitError):
            per_network(loads, SUPPLY, limit)
        return
    assert set(per_network(loads, SUPPLY, limit).levels) == {kept[-1]}


def test_without_static_power_a_faster_clock_saves_no_energy():
    loads = [Load("a", 1e5, 0, 3e4, 0), Load("b", 1e5, 0, 1e4, 0)]
    flat = Supply((200, 400, 800), (0.9, 0.9, 0.9), 0.0)
    fast, slow = layerwise(loads, flat, 1e9), per_network(loads, flat, 100)
    assert fast.nanoseconds < slow.nanoseconds
    assert fast.nanojoules == slow.nanojoules
    leaky = Supply(flat.mhz, flat.volts, 100.0)
    fast, slow = layerwise(loads, leaky, 1e9), per_network(loads, leaky, 200)
    assert fast.nanojoules < slow.nanojoules
    assert 0 < fast.static_share < slow.static_share < 1


def test_layers_unlike_each_other_gain_and_a_layer_that_waits_for_memory_does_not():
    heavy, light = Load("heavy", 1e5, 0, 6e4, 0), Load("light", 1e5, 0, 5e3, 0)
    waits = Load("waits", 1e4, 1e6, 5e3, 1e3)
    found = layerwise([heavy, light, waits], SUPPLY, 350)
    assert found.levels == (1, 2, 0)
    base = per_network([heavy, light, waits], SUPPLY, 350)
    assert found.nanoseconds < base.nanoseconds


def test_figures_follow_from_time_and_energy():
    found = layerwise([Load("a", 8e5, 0, 1e6, 5e5, 10**9)], SUPPLY, 1e9)
    assert found.nanoseconds == 1e6
    assert found.nanojoules == pytest.approx(1.5e6 + 100 * 1e6 / 1e3)
    assert found.per_second == 1000
    energy = found.energy
    assert energy.watts == pytest.approx(1.6)
    assert energy.per_second_per_watt == pytest.approx(1000 / 1.6)
    assert energy.tops_per_watt == pytest.approx(1e9 / 1e12 / 1.6e-3)
    assert energy.battery_hours(16) == pytest.approx(10)
    assert energy.per_frame(20, 5) == pytest.approx(4 * 1.6e-3)
    assert energy.per_zoom_second(20, 5, 15) == pytest.approx(60 * 1.6e-3)
    assert energy.source == "modelled"
    for joules, seconds in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(PowerLimitError, match="positive"):
            Energy(joules, seconds)


def test_the_published_gains_belong_together():
    # ETRI 2022: FPS +33 %, energy -14 % against DVFS; so power rises and the product falls.
    fps, energy = 1.33, 1 - 0.14
    assert 1 - 1 / fps == pytest.approx(0.248, abs=5e-4)
    assert fps * energy == pytest.approx(1.144, abs=5e-4)
    assert 1 / energy == pytest.approx(1.163, abs=5e-4)
    assert energy / fps == pytest.approx(0.647, abs=5e-4)


def test_limits_and_supplies_that_make_no_sense_are_refused():
    load = Load("a", 1e5, 0, 3e4, 0)
    with pytest.raises(PowerLimitError, match="static power alone"):
        layerwise([load], SUPPLY, 50)
    with pytest.raises(PowerLimitError, match="a takes at least"):
        layerwise([load], SUPPLY, 120)
    with pytest.raises(PowerLimitError, match="ascending"):
        Supply((400, 200), (0.6, 0.7), 1.0)
    with pytest.raises(PowerLimitError, match="needs a voltage"):
        Supply((200,), (), 1.0)
    with pytest.raises(PowerLimitError, match="static"):
        Supply((200,), (0.9,), -1.0)
