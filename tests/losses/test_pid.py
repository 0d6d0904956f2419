import pytest

from lightning_unlearn.losses.pid import PIDGains, PIDState, pid_step, room_above


def run(gains, rates, start=0.0):
    state, weights, integrals = PIDState(start), [], []
    for rate in rates:
        state, _ = pid_step(gains, state, rate)
        weights.append(state.cost_weight)
        integrals.append(state.integral)
    return weights, integrals


def test_incremental_table_by_hand_with_both_saturations():
    # Kp 2, Ki 1, Kd 0.5, target 0.1, λ_max 3, integral_max 0.5.
    # rate  e     I                    λ
    # 0.3   0.2   0.2                  0   + 0.4 + 0.2 + 0.5·0.2     = 0.7
    # 0.5   0.4   0.6 → 0.5 (clipped)  0.7 + 0.8 + 0.5 + 0.5·0.2     = 2.1
    # 0.5   0.4   0.9 → 0.5            2.1 + 0.8 + 0.5 + 0           = 3.4 → 3 (clipped)
    # 0.0  −0.1   0.4                  3   − 0.2 + 0.4 − 0.5·0.5     = 2.95
    # 0.0  −0.1   0.3                  2.95 − 0.2 + 0.3 + 0          = 3.05 → 3
    gains = PIDGains(2.0, 1.0, 0.5, 0.1, lambda_max=3.0, integral_max=0.5)
    weights, integrals = run(gains, [0.3, 0.5, 0.5, 0.0, 0.0])
    assert weights == pytest.approx([0.7, 2.1, 3.0, 2.95, 3.0])
    assert integrals == pytest.approx([0.2, 0.5, 0.5, 0.4, 0.3])


def test_incremental_never_falls_below_zero_and_the_integral_never_below_its_limit():
    # e = −0.5 each time: I = −0.5, −0.8 (clipped), λ = 0 throughout.
    weights, integrals = run(PIDGains(1.0, 1.0, 0.0, 0.5, integral_max=0.8), [0.0, 0.0])
    assert weights == [0.0, 0.0]
    assert integrals == pytest.approx([-0.5, -0.8])


def test_positional_table_by_hand():
    # Kp 2, Ki 1, Kd 4, target 0.1, no smoothing: λ depends on the present only.
    # rate  e     I                   λ = Kp·e + Ki·I + Kd·max(0, Δe)
    # 0.3   0.2   0.2                 0.4 + 0.2 + 0.8 = 1.4
    # 0.2   0.1   0.3                 0.2 + 0.3 + 0   = 0.5   (a falling error adds no derivative)
    # 0.0  −0.1   0.2                −0.2 + 0.2 + 0   = 0
    # 0.0  −0.1   0.1                −0.2 + 0.1       → 0 (clipped)
    # 0.0  −0.1   0.0 , then −0.1 → 0 (clipped)
    gains = PIDGains(2.0, 1.0, 4.0, 0.1, form="positional")
    weights, integrals = run(gains, [0.3, 0.2, 0.0, 0.0, 0.0, 0.0])
    assert weights == pytest.approx([1.4, 0.5, 0.0, 0.0, 0.0, 0.0])
    assert integrals == pytest.approx([0.2, 0.3, 0.2, 0.1, 0.0, 0.0])


def test_positional_smoothing_by_hand():
    # s = 0.5, Kp 1 only: ē = 0.5·0 + 0.5·0.4 = 0.2, then 0.5·0.2 + 0.5·0.4 = 0.3.
    gains = PIDGains(1.0, 0.0, 0.0, 0.0, form="positional", smoothing=0.5)
    assert run(gains, [0.4, 0.4])[0] == pytest.approx([0.2, 0.3])


def test_terms_add_up_to_the_change():
    gains, state = PIDGains(2.0, 0.01, 0.1, 0.03), PIDState(1.0, 0.2, 0.01)
    after, terms = pid_step(gains, state, 0.08)
    assert after.cost_weight - 1.0 == pytest.approx(terms.proportional + terms.integral + terms.derivative)
    assert terms.error == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("recent", "expert", "room"),
    [
        (20.0, 20.0, 1.0),
        (18.7, 20.0, 0.5),
        (18.0, 20.0, 0.0),
        (10.0, 20.0, 0.0),
        (-21.3, -20.0, 0.5),
        (-19.0, -20.0, 1.0),
    ],
)
def test_the_room_above_the_floor_by_hand(recent, expert, room):
    # Floor 0.9, margin 0.07: of 20, from 18 to 19.4; of −20, from −22 to −20.6.
    assert room_above(recent, expert, 0.9, 0.07) == pytest.approx(room)
