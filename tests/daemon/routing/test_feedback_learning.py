"""What is learnt from verdicts, and above all what is not: made-up users whose wishes are known."""

from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.accounts.ledger import Record, open_for_writing
from daemon.routing.feedback import keep
from daemon.routing.feedback_learning import CERTAIN, LEAST, LIKELY, LONG, SHORT, Floats, Worth, correct, lesson
from daemon.routing.recent import Sight
from routers.calibration import shipped
from routers.correction import Correction, Lesson
from routers.encoder import DIMENSION
from routers.interface import RouterError
from routers.logistic import logit, sigmoid

VERDICTS = 200


class User:
    """Asks about things in few directions of the embeddings' space; along the first the cloud is due, by `strength`."""

    def __init__(self, strength: float, seed: int = 0, count: int = VERDICTS) -> None:
        random = np.random.default_rng(seed)
        spread = np.concatenate([np.full(8, 0.3), np.full(DIMENSION - 8, 0.01)])
        self.vectors: Floats = random.normal(size=(count, DIMENSION)) * spread
        lead = random.normal(-1.2, 1.0, count)
        self.scores: Floats = sigmoid(lead)
        self.up: NDArray[np.bool_] = self.scores >= np.quantile(self.scores, 0.8)
        chance = sigmoid(0.5 * lead + strength * self.vectors[:, 0] / 0.3)
        self.due: NDArray[np.bool_] = random.random(count) < chance

    def lesson(self) -> tuple[Correction, Worth]:
        return lesson("mf", "1", self.scores, self.vectors, self.due, self.up)


def test_a_wish_that_the_verdicts_show_clearly_is_learnt_whole_and_orders_other_prompts_better() -> None:
    correction, worth = User(2.0, count=600).lesson()
    other = User(2.0, seed=1)
    corrected = correction.of(other.scores, other.vectors)

    def concordance(leads: Floats) -> float:
        return float((leads[other.due][:, None] > leads[~other.due][None, :]).mean())

    assert (worth.refusal, worth.step) == ("", 1.0)
    assert concordance(corrected.astype(float)) > concordance(other.scores) + 0.1
    assert worth.after - worth.before == pytest.approx(
        concordance(corrected.astype(float)) - concordance(other.scores), abs=0.08
    )


def test_verdicts_at_random_are_refused_nearly_always_and_never_make_more_than_a_short_step() -> None:
    kept = [worth for seed in range(8) if not (worth := User(0.0, seed).lesson()[1]).refusal]

    assert len(kept) <= 3
    assert all(worth.step < 1 for worth in kept)


def test_a_wish_that_shows_with_some_certainty_changes_ranks_by_no_more_than_a_long_step() -> None:
    user = User(2.0)
    correction, worth = user.lesson()
    ranks = [leads.argsort().argsort() for leads in (user.scores, correction.of(user.scores, user.vectors))]

    assert LIKELY * worth.error < worth.after - worth.before < CERTAIN * worth.error
    assert float(np.abs(ranks[0] - ranks[1]).mean()) / VERDICTS == pytest.approx(LONG, rel=0.1)


def test_a_wish_that_shows_faintly_changes_ranks_by_little() -> None:
    moved = []
    for seed in range(6):
        user = User(0.35, seed)
        correction, worth = user.lesson()
        if not worth.refusal and worth.step < 1:
            ranks = [leads.argsort().argsort() for leads in (user.scores, correction.of(user.scores, user.vectors))]
            moved.append(float(np.abs(ranks[0] - ranks[1]).mean()) / VERDICTS)

    assert moved
    assert max(moved) == pytest.approx(SHORT, rel=0.1)


def test_verdicts_on_answers_in_the_place_of_choices_are_recognised_and_refused() -> None:
    user = User(1.0, count=500)
    # Most answers from the cloud are good, and most from here are too.
    random = np.random.default_rng(5)
    user.due = np.where(user.up, random.random(500) < 0.85, random.random(500) < 0.3)

    assert "as if the verdicts were on the answers" in user.lesson()[1].refusal


def given(ledger: Path, user: User, repeated: int = 1) -> Path:
    """The ledger file with the user's verdicts, each on `repeated` requests of one conversation."""
    label = f"mf@{shipped('mf').version}"
    with closing(open_for_writing(ledger)) as connection:
        for row in range(len(user.due) * repeated):
            each = row // repeated
            route: Literal["local", "cloud"] = "cloud" if user.up[each] else "local"
            record = Record(id=f"{row:032x}", time=float(row), wire="openai", outcome="ok", route=route)
            sight = Sight(label, float(user.scores[each]), user.vectors[each].astype("<f2").tobytes())
            keep(connection, record, "right" if user.up[each] == user.due[each] else "wrong", sight)
    return ledger


def test_verdicts_on_the_turns_of_one_conversation_count_once(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match=r"there are 10 verdicts .* different prompts"):
        correct("mf", given(tmp_path / "ledger.db", User(2.0, count=10), repeated=10), tmp_path)
    _, worth = correct("mf", given(tmp_path / "clear.db", User(2.0, count=600), repeated=2), tmp_path)
    assert worth.n == 600


def test_verdicts_that_turn_the_scores_around_are_refused_as_no_correction_could_be_read_that_does(
    tmp_path: Path,
) -> None:
    user = User(0.0, count=1200)
    user.due = user.scores < np.quantile(user.scores, 0.4)
    user.up = np.zeros(1200, dtype=bool)
    with pytest.raises(RouterError, match=r"the prompts that mf@.* finds hard are the easy ones"):
        correct("mf", given(tmp_path / "ledger.db", user), tmp_path / "corrections")
    assert not (tmp_path / "corrections").exists()


def test_where_everything_was_answered_in_one_place_the_route_says_nothing() -> None:
    user = User(2.0)
    user.up[:] = False

    assert user.lesson()[1].dependence == 0


def test_a_gain_within_its_own_standard_error_is_refused() -> None:
    worth = Worth(400, before=0.6, after=0.6 + 0.9 * LEAST * 0.02, error=0.02, dependence=0.0, step=1.0)

    assert "not clearly better (0.600 before, 0.618 after, standard error 0.020)" in worth.refusal


def test_holding_out_by_one_newton_step_gives_what_learning_without_those_verdicts_would() -> None:
    user = User(1.0)
    rows, rest = np.arange(40), np.arange(40, VERDICTS)
    whole = Lesson(user.scores, user.vectors, user.due)
    without = Lesson(user.scores[rest], user.vectors[rest], user.due[rest]).correction("mf", "1")
    refitted = logit(without.of(user.scores[rows], user.vectors[rows]))
    held_out, seen = whole.held_out(rows), whole.leads()[rows]

    def apart(leads: Floats) -> float:
        """From the refit, whose scale is its own."""
        return float(1 - np.corrcoef(leads, refitted)[0, 1])

    assert apart(held_out) < 0.01
    assert apart(held_out) < apart(seen) / 4


def test_a_step_of_none_is_the_router_itself() -> None:
    user = User(1.0)
    none = Lesson(user.scores, user.vectors, user.due).correction("mf", "1", step=0.0)

    assert none.of(user.scores, user.vectors) == pytest.approx(user.scores, abs=1e-5)


def test_thresholds_send_up_about_as_much_as_before() -> None:
    user = User(1.0)
    correction, _ = user.lesson()
    threshold = np.quantile(user.scores, 0.8)
    other = User(1.0, seed=3, count=4000)

    assert (other.scores >= threshold).mean() == pytest.approx(0.2, abs=0.05)
    assert (correction.of(other.scores, other.vectors) >= threshold).mean() == pytest.approx(0.2, abs=0.06)
