"""The one logistic regression: its weights are where the cross entropy is least, and it always ends."""

import numpy as np
import pytest

from routers.logistic import curvature, logit, regress, sigmoid


def made(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    columns = np.column_stack([random.normal(size=(count, 3)), np.ones(count)])
    return columns, (random.random(count) < sigmoid(columns @ np.array([2.0, -1.0, 0.0, 0.5]))).astype(np.float64)


def test_the_weights_are_where_the_pulled_and_shared_cross_entropy_is_least() -> None:
    columns, outcome = made()
    pull, towards = np.array([0.1, 5.0, 1.0, 1e-3]), np.array([0.0, 1.0, 0.0, 0.0])
    share = np.linspace(0.1, 2, len(outcome))

    def cost(weights: np.ndarray) -> float:
        chance = np.clip(sigmoid(columns @ weights), 1e-12, 1 - 1e-12)
        entropy = -(share * (outcome * np.log(chance) + (1 - outcome) * np.log(1 - chance))).sum()
        return float(entropy + (pull * (weights - towards) ** 2).sum() / 2)

    weights = regress(columns, outcome, pull, towards=towards, share=share)
    for aside in 0.01 * np.vstack([np.eye(4), -np.eye(4)]):
        assert cost(weights) < cost(weights + aside)
    ahead, behind = (np.array([cost(weights + way * aside) for aside in 1e-4 * np.eye(4)]) for way in (1, -1))
    assert (ahead - behind) / 2e-4 == pytest.approx(np.zeros(4), abs=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_outcomes_told_apart_without_a_mistake_end_in_finite_weights_whatever_the_scale(scale: float) -> None:
    lead = np.linspace(-1, 1, 50) * scale
    columns = np.column_stack([lead, np.ones(50)])
    slope, _ = regress(columns, lead > 0, np.full(2, 1e-4))
    assert 0 < slope < np.inf
    assert ((sigmoid(columns @ np.array([slope, 0.0])) > 0.5) == (lead > 0)).all()


@pytest.mark.parametrize("weight", [-30.0, -300.0])
def test_a_start_far_from_what_the_outcomes_say_leads_to_them_all_the_same(weight: float) -> None:
    columns, outcome = made()
    pull = np.full(4, 1e-4)
    far = regress(columns, outcome, pull, towards=np.array([weight, 0.0, 0.0, 0.0]))
    assert far == pytest.approx(regress(columns, outcome, pull), abs=0.01)


def test_the_curvature_at_the_fit_is_the_inverse_of_the_weights_covariance() -> None:
    columns, _ = made(2000)
    pull = np.full(4, 1e-6)
    chance = sigmoid(columns @ np.array([2.0, -1.0, 0.0, 0.5]))
    random = np.random.default_rng(1)
    fits = np.array([regress(columns, random.random(2000) < chance, pull) for _ in range(60)])
    stated = np.sqrt(np.diag(np.linalg.inv(curvature(columns, sigmoid(columns @ fits.mean(axis=0)), pull))))
    assert fits.std(axis=0) == pytest.approx(stated, rel=0.35)


def test_logit_and_sigmoid_undo_each_other_and_stay_finite_at_the_ends() -> None:
    chances = np.array([0.0, 0.01, 0.5, 0.99, 1.0])
    assert np.isfinite(logit(chances)).all()
    assert sigmoid(logit(chances)) == pytest.approx(chances, abs=1e-5)
