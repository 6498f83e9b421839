"""Conversations: a follow-up that says nothing of its own keeps the route, and tool calls stay where they began."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Routing
from daemon.routing.scorer import Scorer
from models.interface import CALL_ID_PREFIX
from models.store import Store
from tests.daemon.conftest import Escalating
from tests.daemon.harness import client
from tests.emulators.servers import Emulator

OPENINGS = (
    "Say good morning to my neighbour in a friendly way.",
    "Qual é a capital da Austrália?",
    "Write a function that merges two sorted lists.",
    "Prove that there are infinitely many primes of the form 4k + 3, and say where the argument fails for 4k + 1.",
    "Uma urna tem 5 bolas vermelhas e 7 azuis; retiram-se três. Qual é a distribuição do número de vermelhas?",
)
FOLLOW_UPS = (
    "continue",
    "Go on, please.",
    "now in Python",
    "commit it",
    "obrigado",
    "e em português?",
    "Thanks!",
    "Shorter, please.",
    "yes",
    "why?",
    "👍",
    "",
)
LONG_FOLLOW_UPS = (
    "Alright, I had to take a call, where were we, please resume.",
    "Sorry for the delay, I was reading your reply, do go on with the next part.",
    "That's enough for today, see you tomorrow and thanks again for everything.",
    "Hmm, I am not convinced, would you double check what you just told me?",
    "Desculpa a demora, estive a ler tudo com calma, avança lá para o próximo ponto.",
    "Ok, entendido, agradeço imenso a paciência que tiveste comigo hoje.",
)
ASKING = (
    "Now prove it formally by induction on the number of vertices of the graph.",
    "Please continue with the proof of the theorem for the case where n is even.",
    "Are you sure? What happens with the second law of thermodynamics in that case?",
    "Continua, mas agora resolve a equação diferencial com condições de fronteira periódicas.",
)
ROUTERS = ("mf", "knn", "sw_ranking")


@pytest.fixture(scope="module")
def scorer(models_ready: Path) -> Scorer:
    return Scorer(Routing(), Store(models_ready))


def conversation(turns: Sequence[str]) -> list[dict[str, Any]]:
    answered = [[{"role": "user", "content": turn}, {"role": "assistant", "content": "Here it is."}] for turn in turns]
    return list(itertools.chain(*answered))[:-1]


@pytest.mark.parametrize("router", ROUTERS)
async def test_no_follow_up_without_content_changes_the_route_however_close_the_threshold(
    scorer: Scorer, router: str
) -> None:
    for opening in OPENINGS:
        turns = [opening]
        began = (await scorer.look(conversation(turns), router)).score
        assert began is not None
        # A conversation that began in the cloud by a hair, and one that stayed here by a hair.
        thresholds = (0.0, began - 0.05, began, math.nextafter(began, 2), began + 0.05, 1.0)
        for follow_up in FOLLOW_UPS:
            turns.append(follow_up)
            score = (await scorer.look(conversation(turns), router)).score
            assert score is not None
            assert [score >= limit for limit in thresholds] == [began >= limit for limit in thresholds], turns


async def test_a_long_follow_up_that_asks_nothing_leaves_the_score_alone_and_one_that_asks_does_not(
    scorer: Scorer,
) -> None:
    for opening in OPENINGS:
        began = (await scorer.look(conversation([opening]))).score
        for follow_up in LONG_FOLLOW_UPS:
            assert (await scorer.look(conversation([opening, follow_up]))).score == began, follow_up
        for follow_up in ASKING:
            assert (await scorer.look(conversation([opening, follow_up]))).score != began, follow_up


@pytest.mark.parametrize("router", ROUTERS)
async def test_a_harder_turn_takes_effect_at_once_and_an_easier_one_slowly(scorer: Scorer, router: str) -> None:
    easy, hard = sorted(
        [((await scorer.look(conversation([turn]), router)).score or 0.0, turn) for turn in (OPENINGS[0], OPENINGS[3])]
    )
    risen = await scorer.look(conversation([easy[1], hard[1]]), router)
    fading = await scorer.look(conversation([hard[1], easy[1]]), router)

    assert risen.score == pytest.approx(hard[0])
    assert fading.score is not None
    assert (easy[0] + hard[0]) / 2 < fading.score < hard[0]


async def test_however_many_long_follow_ups_come_the_question_is_what_is_scored(scorer: Scorer) -> None:
    began = (await scorer.look(conversation([OPENINGS[3]]))).score
    assert (await scorer.look(conversation([OPENINGS[3], *LONG_FOLLOW_UPS, *LONG_FOLLOW_UPS]))).score == began


async def test_what_a_verdict_is_kept_with_is_the_turn_that_the_decision_went_by(scorer: Scorer) -> None:
    easy, hard = OPENINGS[0], OPENINGS[3]
    alone = {turn: (await scorer.look(conversation([turn]), "mf")).score or 0.0 for turn in (easy, hard)}
    fading = conversation([hard, easy, easy])
    score = (await scorer.look(fading, "mf")).score
    assert score is not None
    assert alone[easy] < score < alone[hard]

    up = await scorer.look(fading, "mf", score)
    down = await scorer.look(fading, "mf", math.nextafter(score, 2))
    assert up.sight is not None
    assert down.sight is not None
    assert (up.sight.score, down.sight.score) == pytest.approx((alone[hard], alone[easy]))


CITY = {"type": "string", "maxLength": 20}  # or a model that writes on and on would not come to an end
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": CITY}, "required": ["city"]},
        },
    }
]


def called_and_answered(question: str, answer: Any) -> Any:
    """The history after `answer`, whose tool calls were carried out."""
    message = answer.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "18 degrees"} for call in message.tool_calls]
    return [{"role": "user", "content": question}, message.model_dump(exclude_none=True), *results]


def test_tool_calls_begun_here_go_on_here_and_those_begun_in_the_cloud_there(
    escalating: Escalating, aimock: Emulator
) -> None:
    daemon = escalating(aimock.base_url("openai"))
    ask = client(daemon).chat.completions
    weather = "the weather in two cities"
    begun: dict[str, Any] = {
        "local": ask.create(
            model="local",
            messages=[{"role": "user", "content": weather}],
            tools=TOOLS,
            tool_choice="required",
            max_tokens=200,
        ),
        "cloud": ask.create(model="cloud", messages=[{"role": "user", "content": weather}], tools=TOOLS),
    }
    ids = {route: answer.choices[0].message.tool_calls[0].id for route, answer in begun.items()}
    assert ids["local"].startswith(CALL_ID_PREFIX)
    assert not ids["cloud"].startswith(CALL_ID_PREFIX)

    for route, answer in begun.items():
        history = called_and_answered(weather, answer)
        for threshold in ("0", "1"):  # either model, were it for the score
            body = {"model": f"router-mf-{threshold}", "messages": history, "tools": TOOLS}
            seen = daemon.call("POST", "/v1/route", body)
            assert (seen["route"], seen["reason"]) == (route, "conversation")


def test_a_conversation_of_tool_calls_moves_when_its_model_fails(escalating: Escalating) -> None:
    daemon = escalating("http://127.0.0.1:9/v1")
    call = {"id": "call_abc", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    answer = client(daemon).chat.completions.with_raw_response.create(
        model="auto",
        max_tokens=4,
        messages=[
            {"role": "user", "content": "The weather in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": "call_abc", "content": "18 degrees"},
        ],
    )

    assert answer.headers["x-upcall-route"] == "local"
    assert answer.headers["x-upcall-reason"] == "cloud_failed"
    assert answer.headers["x-upcall-degraded"] == "true"
