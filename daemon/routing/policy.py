"""Which model answers, and why: hard rules first, then the router's score against the threshold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

from daemon.config import Routing
from models.interface import Failure, FailureCode

Route: TypeAlias = Literal["local", "cloud"]


class Reason(Enum):
    """Why a route was taken; the name is the code that clients see, the value the sentence for people."""

    BELOW_THRESHOLD = "the router expects the local model to do well enough"
    ABOVE_THRESHOLD = "the router expects the cloud model's answer to be clearly better"
    BATTERY = "the battery is low, and the router is not sure of the local model's answer (local.battery_floor)"
    FORCED_LOCAL = "the request asked for the local model"
    FORCED_CLOUD = "the request asked for the cloud model"
    SENSITIVE = "it holds something that looks private, and the settings keep such prompts here"
    PRIVACY = "privacy mode keeps everything on this machine"
    NO_KEY = "no API key for the cloud can be read; `upcall key set` stores one"
    CONTEXT_LENGTH = "the prompt does not fit the local model's context"
    IMAGES = "the prompt has images or audio, which the local model cannot read"
    TOOLS = "the request has tools, which the local model cannot call"
    CONVERSATION = "the model that began to call tools in this conversation goes on with it"
    LOW_CONFIDENCE = "the local model's own first words show that it is not sure enough of its answer"
    LOCAL_FAILED = "the local model failed, and the settings let such prompts go up"
    CLOUD_FAILED = "the cloud did not answer, so the local model did"
    BUDGET = "the budget for today has no room for what the cloud may charge"
    BUDGET_MONTH = "the budget for this month has no room for what the cloud may charge"
    BUDGET_UNKNOWN = "there is a budget, and the ledger that counts for it cannot be written; `upcall doctor` says why"
    MAX_COST = "the cloud may charge more than the request allows"
    UNKNOWN_PRICE = "the cloud model's price is not known: set it under prices, or cloud.unknown_price"
    UNKNOWN_COST = "what it asks for may cost more than the list price, by how much nobody here knows: ask for less"
    UNKNOWN_TOOLS = "nobody knows what the provider's own tools may cost in this request: set budget.tools_usd"
    NO_ROUTER = "no router is loaded, so nothing goes up; `upcall pull` fetches its encoder"
    NO_USER_TURN = "no words of the user are in the conversation for the router to score, so it stays here"
    NOT_JUDGED = "the local model had no time to judge the prompt, so it stays here"
    NOT_CALIBRATED = "causal_llm is not calibrated for this local model: run `upcall judge train`; nothing goes up"

    @property
    def code(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Wish:
    """What the request itself says about routing. It can tighten the settings' privacy, never loosen it."""

    route: Route | None = None
    router: str | None = None
    """In the place of the settings' router."""
    threshold: float | None = None
    privacy: bool = False
    allow_sensitive: bool = False
    """Whoever asks has seen that it looks private and sends it up all the same."""
    max_cost: float | None = None
    """US dollars that the cloud may charge for it at most."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What answering takes, beyond words."""

    images: bool = False
    tools: bool = False
    foreign_tools: bool = False
    """Among them some that no local model can be shown: what a provider defines, or runs, itself."""
    tokens_fit: bool = True
    """Whether prompt and answer fit the local model's context."""
    private: str | None = None
    """The sort of sensitive text in it that keeps it here, if any."""
    begun: Route | None = None
    """Who made the latest tool calls in its history, if any."""


@dataclass(frozen=True, slots=True)
class State:
    """What is possible now."""

    privacy: bool
    has_key: bool
    local_tools: bool
    local_images: bool
    battery_threshold: float | None = None
    """Score at and above which a prompt goes up to spare the battery; `None` while there is none to spare."""
    unaffordable: Reason | None = None
    """Why the cloud must not charge for this request."""


@dataclass(frozen=True, slots=True)
class Decision:
    route: Route
    reason: Reason
    score: float | None = None
    """P(the cloud model's answer is preferred); `None` where a hard rule decided before the router."""
    threshold: float | None = None
    router: str | None = None
    """`name@version` of the router that scored."""
    degraded: bool = False
    """The route is not the one that was wanted."""
    by_score: bool = False
    """The score chose the route, or the one that was wanted."""


def decide(
    wish: Wish,
    needs: Needs,
    state: State,
    score: float | None,
    threshold: float,
    router: str | None,
    unscored: Reason = Reason.NO_ROUTER,
) -> Decision:
    """The route of one request, by the first rule that applies; `unscored` says why there is no score.

    Every rule that would send a prompt up passes `_grounded`, which keeps it here where it must not or cannot go.
    """

    def decision(route: Route, reason: Reason, *, by_score: bool = False) -> Decision:
        return _grounded(Decision(route, reason, score, threshold, router, by_score=by_score), wish, needs, state)

    if wish.route == "local":
        return decision("local", Reason.FORCED_LOCAL)
    if wish.route == "cloud":
        return decision("cloud", Reason.FORCED_CLOUD)
    if needs.images and not state.local_images:
        return decision("cloud", Reason.IMAGES)
    if needs.foreign_tools or (needs.tools and not state.local_tools):
        return decision("cloud", Reason.TOOLS)
    if not needs.tokens_fit:
        return decision("cloud", Reason.CONTEXT_LENGTH)
    if needs.begun:
        return decision(needs.begun, Reason.CONVERSATION)
    if score is None:
        return decision("local", unscored)
    if score >= threshold:
        return decision("cloud", Reason.ABOVE_THRESHOLD, by_score=True)
    if state.battery_threshold is not None and score >= state.battery_threshold:
        spared = decision("cloud", Reason.BATTERY, by_score=True)
        if spared.route == "cloud":
            return spared
    return decision("local", Reason.BELOW_THRESHOLD, by_score=True)


def _grounded(decision: Decision, wish: Wish, needs: Needs, state: State) -> Decision:
    if decision.route == "local":
        return decision
    if state.privacy or wish.privacy:
        return replace(decision, route="local", reason=Reason.PRIVACY, degraded=True)
    if needs.private:
        return replace(decision, route="local", reason=Reason.SENSITIVE, degraded=True)
    if not state.has_key:
        return replace(decision, route="local", reason=Reason.NO_KEY, degraded=True)
    if state.unaffordable:
        return replace(decision, route="local", reason=state.unaffordable, degraded=True)
    return decision


def goes_on(decision: Decision, failure: Failure, wish: Wish, needs: Needs, state: State) -> bool:
    """Whether the next cloud model may be tried, of which `state` is, after one that failed before its first word."""
    another_may = failure.code not in (FailureCode.BAD_REQUEST, FailureCode.CONTEXT_LENGTH)
    return decision.route == "cloud" and another_may and _grounded(decision, wish, needs, state).route == "cloud"


def doubted(decision: Decision, wish: Wish, needs: Needs, state: State) -> Decision:
    """What becomes of a local answer that the second look doubts, before its first word: up, where it may go."""
    return _grounded(replace(decision, route="cloud", reason=Reason.LOW_CONFIDENCE), wish, needs, state)


def instead(
    decision: Decision, failure: Failure, wish: Wish, needs: Needs, state: State, routing: Routing
) -> Decision | None:
    """Where to turn when the chosen model failed before its first word; `None` where the failure is the answer."""
    if decision.degraded or wish.route == "local":
        return None
    if decision.route == "cloud":
        return _after_cloud(decision, failure, state, wish)
    if failure.code is FailureCode.CONTEXT_LENGTH:
        up = replace(decision, route="cloud", reason=Reason.CONTEXT_LENGTH)
    elif routing.on_local_failure == "cloud" and failure.code in (FailureCode.UNAVAILABLE, FailureCode.BUSY):
        up = replace(decision, route="cloud", reason=Reason.LOCAL_FAILED, degraded=True)
    else:
        return None
    up = _grounded(up, wish, needs, state)
    return up if up.route == "cloud" else None


def _after_cloud(decision: Decision, failure: Failure, state: State, wish: Wish) -> Decision | None:
    # These would fail here too, or hide from the client that its request is wrong: unless it was being answered here.
    wrong = failure.code in (FailureCode.BAD_REQUEST, FailureCode.CONTEXT_LENGTH)
    if wrong and decision.reason is not Reason.LOW_CONFIDENCE:
        return None
    if decision.reason in (Reason.IMAGES, Reason.TOOLS, Reason.CONTEXT_LENGTH, Reason.LOCAL_FAILED):
        return None
    reason = Reason.CLOUD_FAILED
    if state.privacy or wish.privacy:
        reason = Reason.PRIVACY
    elif failure.code is FailureCode.NO_KEY:
        reason = Reason.NO_KEY
    return replace(decision, route="local", reason=reason, degraded=True)


def conversation_score(turns: Sequence[float], decay: float = 0.7) -> float:
    """One score for a conversation from those of its user turns, oldest first: fast rise, slow decay.

    A harder turn takes effect at once; an easier one closes only a part, `1 - decay`, of the way down to it. So the
    scale of the router's scores, which may span a narrow band, does not matter.
    """
    score = turns[0]
    for turn in turns[1:]:
        score = max(turn, turn + decay * (score - turn))
    return score
