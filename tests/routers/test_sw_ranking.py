import numpy as np
import pytest

from routers.encoder import Encoder
from routers.sw_ranking import WIN, SimilarityWeightedRouter, bradley_terry, leads


def test_ranks_explain_the_wins_they_came_from() -> None:
    ranks = np.array([1.0, 0.3, -0.4, -0.9])
    wins = 1000 / (1 + np.exp(ranks[None, :] - ranks[:, None]))
    np.fill_diagonal(wins, 0)
    found = bradley_terry(wins)
    assert found - found.mean() == pytest.approx(ranks - ranks.mean(), abs=1e-3)


def test_a_tier_without_votes_has_a_finite_rank() -> None:
    wins = np.zeros((3, 3))
    wins[0, 1] = 50  # never lost a game
    assert np.isfinite(bradley_terry(wins)).all()


def test_votes_on_similar_prompts_count_more(encoder: Encoder) -> None:
    known = SimilarityWeightedRouter(encoder)._known
    similarity = known.similarity(encoder.embed(["Prove that the sum of two even numbers is even."]))
    assert similarity.std() > 0.05
    vectors = encoder.embed(["Prove that the sum of two even numbers is even.", "Oi, tudo bem?"])
    assert abs(float(np.diff(leads(known, vectors))[0])) > 1e-3


def test_golden_labels_that_are_no_whole_wins_stay_what_they_are(encoder: Encoder) -> None:
    outcome = SimilarityWeightedRouter(encoder)._known.columns["outcome"]
    assert outcome.max() <= WIN
    assert np.mean(~np.isin(outcome, (0, WIN // 2, WIN))) > 0.1
