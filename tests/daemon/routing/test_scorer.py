"""Scoring: on this machine, of the user's turns alone, and never in the event loop's way."""

import asyncio
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.config import Routing
from daemon.routing.scorer import Scorer, UnknownRouterError, user_turns
from models.store import Store
from routers.encoder import HEAD, TAIL, Encoder
from tests.conftest import Require

SCORE_ONE = """
import asyncio, sys
from daemon.config import Routing
from daemon.routing.scorer import Scorer
from models.store import Store

async def main():
    scorer = Scorer(Routing(), Store(__import__("pathlib").Path(sys.argv[1])))
    print((await scorer.look([{"role": "user", "content": "Is there a largest prime?"}])).score)

asyncio.run(main())
"""


def test_routing_opens_no_socket(models_ready: Path, require: Require) -> None:
    strace = shutil.which("strace")
    require(strace, "needs strace (make test-deps)")
    calls = "trace=socket,connect,bind,sendmsg,sendmmsg,io_uring_setup"
    # The loop's own socketpair is let through: it has no address and leads nowhere.
    traced = subprocess.run(
        [str(strace), "-f", "-qq", "-e", calls, sys.executable, "-c", SCORE_ONE, str(models_ready)],
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert 0 <= float(traced.stdout) <= 1
    assert traced.stderr == ""


@pytest.fixture
def scorer(models_ready: Path) -> Scorer:
    return Scorer(Routing(), Store(models_ready))


async def test_a_prompt_scores_the_same_every_time_and_whoever_else_asks(scorer: Scorer) -> None:
    messages = [[{"role": "user", "content": text}] for text in ("What is 2 + 2?", "Prove Fermat's last theorem.")]
    alone = [(await scorer.look(message)).score for message in messages]
    together = [look.score for look in await asyncio.gather(*map(scorer.look, messages * 4))]

    assert together == alone * 4


async def test_the_loop_runs_on_while_a_prompt_is_scored(scorer: Scorer) -> None:
    await scorer.load()
    messages = [{"role": "user", "content": f"{turn} " + "word " * 4000} for turn in range(8)]
    looking = asyncio.create_task(scorer.look(messages))
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 10


LONG = "word " * 60_000
PIECE = HEAD + TAIL


async def test_prompts_are_scored_while_a_long_text_is_embedded(scorer: Scorer) -> None:
    await scorer.load()
    await scorer.embed("and the encoder is loaded")
    embedding = asyncio.create_task(scorer.embed(LONG))
    await asyncio.sleep(0)
    assert (await scorer.look([{"role": "user", "content": "Is there a largest prime?"}])).score is not None
    assert not embedding.done()
    embedding.cancel()


async def test_embedding_stops_once_nobody_waits_for_it(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    await scorer.embed("and the encoder is loaded")
    pieces: list[Sequence[str]] = []
    third, given_up, embed = threading.Event(), threading.Event(), Encoder.embed

    def held(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
        pieces.append(texts)
        if len(pieces) == 3:
            third.set()
            given_up.wait(60)
        return embed(encoder, texts)

    monkeypatch.setattr(Encoder, "embed", held)
    embedding = asyncio.create_task(scorer.embed(LONG))
    assert await asyncio.to_thread(third.wait, 60)
    embedding.cancel()
    given_up.set()
    await asyncio.wait([embedding])
    for _ in range(2):
        await scorer.routers()  # Behind what the thread still has to do, and behind what would follow that.
    assert len(pieces) == 3 < len(LONG) / PIECE


async def test_a_long_text_has_the_mean_direction_of_its_pieces(scorer: Scorer, use_encoder: Path) -> None:
    text = "Why is the sky blue? " * 200 + "Integrate x squared. " * 200
    pieces = [text[:PIECE], text[PIECE : 2 * PIECE], text[2 * PIECE :]]
    mean = np.average(Encoder(use_encoder).embed(pieces), axis=0, weights=[len(piece) + 1 for piece in pieces])

    assert await scorer.embed(text) == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=1e-6)


async def test_system_and_assistant_messages_are_not_scored(scorer: Scorer) -> None:
    question = {"role": "user", "content": "Is there a largest prime?"}
    others = [{"role": "system", "content": "You are a pirate."}, {"role": "assistant", "content": "Arr."}]

    assert (await scorer.look([*others, question])).score == (await scorer.look([question])).score


async def test_an_unknown_router_is_named_as_such(scorer: Scorer) -> None:
    with pytest.raises(UnknownRouterError, match="mf"):
        await scorer.look([{"role": "user", "content": "x"}], router="oracle")


async def test_a_missing_encoder_says_which_command_brings_it_and_is_looked_for_again(
    tmp_path: Path, models_ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(Routing(), Store(tmp_path))
    assert (await scorer.look([{"role": "user", "content": "x"}])).score is None
    assert "upcall pull use-multilingual" in scorer.trouble

    link_encoder(models_ready, tmp_path)
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (await scorer.look([{"role": "user", "content": "x"}])).score is not None
    assert scorer.trouble == ""


def test_text_is_taken_from_strings_and_parts_alike() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]

    assert user_turns([{"role": "user", "content": parts}]) == user_turns([{"role": "user", "content": "a\nb"}])


FIRST = "What is a monad?"


@pytest.mark.parametrize(
    "followup",
    [
        "continue",
        "Now in Python, please.",
        "commit it",
        "obrigado!",
        "e em português?",
        "",
        "👍",
        "继续",
        "続けて",
        "yes",
    ],
)
def test_a_follow_up_that_says_nothing_of_its_own_is_not_scored(followup: str) -> None:
    assert user_turns([{"role": "user", "content": text} for text in (FIRST, followup)]) == [FIRST]
    assert user_turns([{"role": "user", "content": followup}]) == [followup]


@pytest.mark.parametrize(
    "followup",
    [
        "Now prove that every finite integral domain is a field.",
        "请证明每个有限整环都是一个域, 然后求出它的所有零因子.",
        "refactor_the_scheduler_so_that_it_never_starves_anyone()",
    ],
)
def test_a_follow_up_with_a_question_of_its_own_is_scored(followup: str) -> None:
    assert user_turns([{"role": "user", "content": text} for text in (FIRST, followup)]) == [FIRST, followup]


@pytest.mark.parametrize("followup", ["word" + " word" * 200_000, "定" * 1_000_000])
def test_a_huge_follow_up_is_not_taken_apart_where_its_length_tells(followup: str) -> None:
    messages = [{"role": "user", "content": text} for text in (FIRST, followup)]
    tracemalloc.start()
    try:
        user_turns(messages)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # a list of its words takes ten megabytes
    finally:
        tracemalloc.stop()


async def test_knn_names_the_known_prompts_that_its_score_was_read_off(scorer: Scorer) -> None:
    look = await scorer.look([{"role": "user", "content": "A train travels 60 km in 45 minutes. How fast?"}], "knn")

    similarity = [neighbour.similarity for neighbour in look.neighbours]
    assert len(similarity) == 5
    assert similarity == sorted(similarity, reverse=True)
    assert all(neighbour.source for neighbour in look.neighbours)


def link_encoder(source: Path, target: Path) -> None:
    for file in source.glob("*use-multilingual*"):
        (target / file.name).symlink_to(file)
