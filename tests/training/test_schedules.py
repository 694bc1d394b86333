"""Schedules and budgets: pure functions that end at zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.settings import TrainSettings, load
from transom.training.budget import SCHEDULES, WARMUP_STEPS, Budget

fractions = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize("name", SCHEDULES)
@given(position=fractions, warmup=st.floats(0, 0.4), cooldown=st.floats(0, 0.6))
def test_factor_stays_between_zero_and_one_and_ends_at_zero(
    name: str, position: float, warmup: float, cooldown: float
) -> None:
    schedule = SCHEDULES[name]
    assert 0 <= schedule(position, warmup, cooldown) <= 1
    assert schedule(1.0, warmup, cooldown) == 0


def test_shape_of_warmup_stable_decay() -> None:
    schedule = SCHEDULES["wsd"]
    assert schedule(0.05, 0.1, 0.4) == pytest.approx(0.5)
    assert schedule(0.3, 0.1, 0.4) == 1
    assert schedule(0.8, 0.1, 0.4) == pytest.approx(0.5)


def test_shape_of_cosine() -> None:
    schedule = SCHEDULES["cosine"]
    assert schedule(0.1, 0.1, 0.4) == 1
    assert schedule(0.55, 0.1, 0.4) == pytest.approx(0.5)


@given(steps=st.integers(1, 10_000))
def test_a_run_of_steps_takes_all_of_them_and_none_at_zero(steps: int) -> None:
    budget = Budget(steps=steps)
    assert not budget.over(steps - 1, 1e9) and budget.over(steps, 0)
    assert budget.position(0, 0) > 0 and budget.position(steps - 1, 0) < 1


@pytest.mark.parametrize(("asked", "steps"), [({"tokens": 1001}, 11), ({"epochs": 3}, 21), ({"steps": 5}, 5)])
def test_tokens_and_epochs_become_steps(asked: dict[str, int], steps: int) -> None:
    assert Budget.of(load(TrainSettings, asked), tokens_per_step=100, steps_per_epoch=7.0).steps == steps


@given(speed=st.floats(0.5, 20), reserve=st.floats(0, 10))
def test_a_run_of_time_ends_in_time_with_a_rate_near_zero(speed: float, reserve: float) -> None:
    """However fast the steps are: the last one is taken near the end, at almost no learning rate."""
    budget, elapsed, steps, factors = Budget(time=100.0), 0.0, 0, []
    while not budget.over(steps, elapsed, 1 / speed, reserve):
        position = budget.position(steps, elapsed, 1 / speed, reserve)
        factors.append(SCHEDULES["wsd"](position, 0.02, 0.4))
        elapsed, steps = elapsed + 1 / speed, steps + 1
    assert abs(elapsed - (100 - reserve)) <= 1 / speed
    assert 0 < factors[-1] < 2.5 / speed / (100 - reserve) / 0.4
    assert budget.over(steps, elapsed, 1 / speed, reserve)


@given(prepared=st.floats(0, 60), speed=st.floats(0.5, 20), reserve=st.floats(0, 10))
def test_the_rate_rises_from_the_first_step_however_long_the_data_took(
    prepared: float, speed: float, reserve: float
) -> None:
    budget, elapsed, steps, seconds, factors = Budget(time=200.0, began=prepared), prepared, 0, 0.0, []
    while not budget.over(steps, elapsed, seconds, reserve):
        rise = budget.warmup(0.02, WARMUP_STEPS, seconds, reserve)
        factors.append(SCHEDULES["wsd"](budget.position(steps, elapsed, seconds, reserve), rise, 0.4))
        elapsed, steps, seconds = elapsed + 1 / speed, steps + 1, 1 / speed
    rising = next(at for at, factor in enumerate(factors) if factor == 1)
    assert factors[: rising + 1] == sorted(factors[: rising + 1])
    assert factors[0] < 0.05 and rising >= min(WARMUP_STEPS, 0.1 * steps) - 2
    assert factors[-1] < 0.05 or steps < 60, "and it ends at almost nothing"


@pytest.mark.parametrize(("steps", "share"), [(10_000, 0.02), (1000, 0.03), (300, 0.1), (20, 0.1)])
def test_warm_up_takes_thirty_steps_or_its_share(steps: int, share: float) -> None:
    assert Budget(steps=steps).warmup(0.02, WARMUP_STEPS) == pytest.approx(share)
    assert Budget(steps=steps).warmup(0.02, 0) == 0.02, "as asked for"


@given(since=st.floats(0.01, 0.99), cooldown=st.floats(0.05, 0.9))
def test_a_limit_given_on_the_way_lets_the_rate_fall_from_where_it_stands(
    since: float, cooldown: float
) -> None:
    budget = Budget(steps=1000, since=since)
    rise, fall = budget.warmup(0.02, WARMUP_STEPS), budget.cooldown(cooldown)
    places = [since + (1 - since) * n / 50 for n in range(51)]
    factors = [round(SCHEDULES["wsd"](place, rise, fall), 9) for place in places]
    assert factors[0] == 1 and factors[-1] == 0
    assert factors == sorted(factors, reverse=True)
    if since <= 1 - cooldown:
        assert fall == cooldown, "as in a run that was begun with it"
