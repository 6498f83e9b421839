"""One request's way: look, decide, run, and turn to the other model where that is allowed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from daemon import resolve
from daemon.accounts.budget import Budget, Hold
from daemon.accounts.prices import Price
from daemon.config import Settings
from daemon.processes.workers import Workers
from daemon.routing import policy, recent
from daemon.routing.appraiser import Appraiser
from daemon.routing.battery import Battery
from daemon.routing.policy import Decision, Needs, Reason, State, Wish
from daemon.routing.recent import Recent, Sight
from daemon.routing.scorer import Look, Scorer
from daemon.routing.second_look import SecondLooks, Verdict
from models.client import WorkerGoneError
from models.cloud.size import likely_tokens, most_predicted, most_tokens, runs_tools, unpriced
from models.interface import (
    ChatRequest,
    Event,
    Failure,
    FailureCode,
    ModelStatus,
    Native,
    TextDelta,
    ToolCallDelta,
    Usage,
)

if TYPE_CHECKING:
    from routers.knn import Neighbour


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model that answers from here on, and why."""

    decision: Decision
    needs: Needs
    model: str
    """Name that the answer carries."""
    router_ms: float
    """What scoring took."""
    neighbours: "Sequence[Neighbour]" = ()
    """The known prompts that the score was read off, nearest first, where the router does that."""
    close: bool = False
    """The local answer is to be looked at before its first word goes out."""
    verdict: Verdict | None = None
    """What that came to."""
    wasted_tokens: int = 0
    """Of the local answer that was thrown away for it."""
    failed: FailureCode | None = None
    """Why this is not the model that was chosen first."""
    hop: int = 0
    """Which of the cloud models, in order of preference, where it is one."""
    sight: Sight | None = None
    """What a verdict on the decision would be kept with."""
    hold: Hold | None = None
    """What was set aside for it, where it costs something and the price is known."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What the request cost, every model that was asked for it counted, and how much less that is than the cloud alone
    would have cost; at list prices in US dollars."""

    cost: float
    saved: float


@dataclass(slots=True)
class _Attempt:
    """One model's turn at a request."""

    chosen: Chosen
    paid: float
    """US dollars, for this request so far."""
    begun: bool = False
    """A word of the answer has gone out."""
    failure: Failure | None = None
    doubted: Callable[[], Chosen] | None = None
    """After a bad second look: who is to answer instead, as things are when it is called."""


class SensitivePromptError(Exception):
    """The settings want whoever asks to decide; the message says what was recognised, without quoting it."""


class Dispatcher:
    def __init__(self, settings: Settings, workers: Workers, scorer: Scorer, budget: Budget, recent: Recent) -> None:
        self.ledger = budget.ledger
        self._budget = budget
        self._settings = settings
        self._recent = recent
        self._appraiser = Appraiser(settings.sensitive, workers)
        self._workers = workers
        self._scorer = scorer
        self._second_looks = SecondLooks(settings, scorer, workers)
        self._clouds = resolve.clouds(settings.cloud)
        local = settings.local
        # What another machine computes costs this one's battery nothing.
        self._battery = Battery(None if local.endpoint else local.battery_floor)

    async def answer(
        self, request: ChatRequest, wish: Wish, id: str, wire: str
    ) -> AsyncGenerator[Chosen | Bill | Event, None]:
        """Answer `request`: first a `Chosen`, then that model's events and, where the price is known, its `Bill`.

        Another `Chosen` follows only before the first word: with the verdict of a second look, and with the events of
        the other model where that was bad or the first model failed.
        `id` and `wire` are what the ledger knows the request by. Raises `UnknownRouterError` and `SensitivePromptError`
        before anything else.
        """
        first = await self.decide(request, wish)
        if first.sight and first.decision.by_score and recent.may_keep(self._settings, self._workers.standing.privacy):
            self._recent.note(id, first.sight)
        chosen: Chosen | None = first
        paid = 0.0
        while chosen:
            attempt = _Attempt(chosen, paid)
            async with aclosing(self._attempt(attempt, request, wish, id, wire)) as items:
                async for item in items:
                    yield item
            paid, chosen, failure = attempt.paid, attempt.chosen, attempt.failure
            if attempt.doubted and chosen.decision.route == "cloud":
                wasted = chosen.verdict.tokens if chosen.verdict else 0
                chosen = replace(attempt.doubted(), close=False, wasted_tokens=wasted)
                continue
            if failure is None:
                return
            turned = None if attempt.begun else await self._instead(chosen, request, failure, wish)
            if turned is None:
                yield self._explained(chosen.decision, failure)
            chosen = turned

    async def _attempt(
        self, attempt: "_Attempt", request: ChatRequest, wish: Wish, id: str, wire: str
    ) -> AsyncGenerator[Chosen | Bill | Event, None]:
        """Have the chosen model answer; what becomes of that is in `attempt` at the end."""
        # Nothing is awaited between a decision and this, so that what the decision found affordable still is.
        with self._hold(attempt.chosen, request, id, wire) as hold:
            yield replace(attempt.chosen, hold=hold)
            bounded = self._bounded(attempt.chosen, request, wish)
            async with aclosing(self._events(attempt.chosen, bounded, wish, hold)) as events:
                async for event in events:
                    if isinstance(event, Verdict):
                        attempt.chosen = replace(attempt.chosen, verdict=event)
                        if event.doubtful:
                            attempt.doubted = await self._doubted(attempt.chosen, request, wish)
                            attempt.chosen = attempt.doubted()
                        if attempt.chosen.decision.route == "cloud":
                            break
                        yield attempt.chosen
                        continue
                    if isinstance(event, Failure):
                        attempt.failure = event
                        break
                    attempt.begun |= isinstance(event, TextDelta | ToolCallDelta | Native)
                    if isinstance(event, Usage) and hold:
                        hold.used(event)
                    yield event
                    if isinstance(event, Usage) and (bill := self._bill(attempt, event, hold)):
                        yield bill
            if attempt.failure and hold:
                hold.failed(attempt.failure.lost)
        attempt.paid += hold.usd if hold else 0.0

    def _bill(self, attempt: "_Attempt", usage: Usage, hold: Hold | None) -> Bill | None:
        if hold:
            return Bill(attempt.paid + hold.usd, 0.0)
        price = self._price()
        if price is None or attempt.chosen.decision.route == "cloud":
            return None
        return Bill(attempt.paid, max(price.of(usage) - attempt.paid, 0.0))

    async def decide(self, request: ChatRequest, wish: Wish) -> Chosen:
        """The decision alone: runs no model and opens no connection. Raises as `answer` does."""
        local = await self._workers.local_outline()
        needs = await self._appraiser.needs(request, wish, local)
        look = await self._look(request, wish)
        seen = (look.score, look.threshold, look.router, look.unscored)
        spared = await self._battery_threshold(wish)
        decision = await self._informed(
            lambda: policy.decide(wish, needs, self._state(local, request, wish, spared), *seen)
        )
        if decision.reason is Reason.SENSITIVE and self._settings.sensitive.action == "ask":
            raise SensitivePromptError(f"This prompt would go to the cloud, and it seems to hold: {needs.private}.")
        close = self._second_looks.wanted(decision, look, request)
        return Chosen(
            decision, needs, self._name(decision, local), look.milliseconds, look.neighbours, close, sight=look.sight
        )

    async def _informed(self, decide: Callable[[], Decision]) -> Decision:
        """What `decide` says once the key and the costs that it asks for have been looked for."""
        decision = decide()
        if decision.reason is Reason.NO_KEY and await self._workers.look_for_key():
            decision = decide()
        counts = decision.route == "cloud" or decision.reason in (Reason.UNKNOWN_PRICE, Reason.BUDGET_UNKNOWN)
        return decide() if counts and await self._learn_costs() else decision

    async def _doubted(self, chosen: Chosen, request: ChatRequest, wish: Wish) -> Callable[[], Chosen]:
        """Who answers in the place of a local answer that will not do; to be called again when that is acted upon.

        The answer may stay, so that a missing key is looked for only as long as it may be held back.
        """
        local = await self._workers.local_outline()
        held = chosen.verdict.milliseconds if chosen.verdict else 0.0
        left = max(self._settings.second_look.milliseconds - held, 0.0)

        def decide() -> Decision:
            return policy.doubted(chosen.decision, wish, chosen.needs, self._state(local, request, wish))

        def choose() -> Chosen:
            decision = decide()
            return replace(chosen, decision=decision, model=self._name(decision, local))

        with suppress(TimeoutError):
            await asyncio.wait_for(self._informed(decide), left / 1000)
        return choose

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt for the local model; an estimate where that is on another server.

        Raises `ValueError` where it cannot render the request, `WorkerGoneError` where it does not run.
        """
        if self._settings.local.endpoint:
            # llama-server and vLLM each have a way of their own to be asked for it, and Ollama has none.
            return likely_tokens(request)
        client = await self._workers.get("local")
        if client is None:
            raise WorkerGoneError(self._workers.why_down.get("local", "it did not start in time"))
        return await client.count_tokens(request)

    async def _look(self, request: ChatRequest, wish: Wish) -> Look:
        if wish.route:
            return Look(None, 0, None, 0)
        return await self._scorer.look(request.messages, wish.router, wish.threshold)

    async def _battery_threshold(self, wish: Wish) -> float | None:
        """Where prompts go up while the battery is spared, unless the request itself says how to route it."""
        if wish.route or wish.router or wish.threshold is not None or not await self._battery.is_low():
            return None
        threshold, _ = await self._scorer.threshold(self._settings.local.battery_share)
        return threshold

    def _state(
        self,
        local: ModelStatus,
        request: ChatRequest,
        wish: Wish,
        battery_threshold: float | None = None,
        hop: int = 0,
    ) -> State:
        standing, unaffordable = self._workers.standing, self._unaffordable(request, wish, hop)
        return State(
            standing.privacy, standing.has_key, local.tools, local.images, battery_threshold, unaffordable=unaffordable
        )

    def _unaffordable(self, request: ChatRequest, wish: Wish, hop: int) -> Reason | None:
        limits = self._settings.budget
        if not (limits.limited or wish.max_cost is not None):
            return None
        if unpriced(request, self._clouds[hop].defaults):
            return Reason.UNKNOWN_COST
        if limits.tools_usd is None and runs_tools(request):
            return Reason.UNKNOWN_TOOLS
        return self._budget.refusal(limits, self._most(request, hop), wish.max_cost)

    def _price(self, hop: int = 0) -> Price | None:
        prices = self._workers.prices if self._workers.cloud == self._settings.cloud else None
        return prices[hop] if prices else None

    def _most(self, request: ChatRequest, hop: int) -> float | None:
        """What that cloud model can charge for `request`, in US dollars; `None` where its price is not known."""
        price = self._price(hop)
        if price is None:
            return None
        answer = (request.max_tokens or self._settings.budget.answer_tokens) + most_predicted(request)
        prompts = request.n if self._clouds[hop].one_choice_each else 1
        return price.most(most_tokens(request) * prompts, answer * request.n) + self._beside(request)

    def _beside(self, request: ChatRequest) -> float:
        """What the provider's own tools are taken to cost, in US dollars."""
        return (self._settings.budget.tools_usd or 0.0) if runs_tools(request) else 0.0

    async def _learn_costs(self) -> bool:
        """Wait for the prices and for what was spent, right after a start; whether there was anything to wait for."""
        if self._workers.prices is not None and self._budget.known:
            return False
        await self._workers.learn_prices()
        await self._budget.learn()
        return True

    def _hold(self, chosen: Chosen, request: ChatRequest, id: str, wire: str) -> AbstractContextManager[Hold | None]:
        price = None if chosen.decision.route == "local" else self._price(chosen.hop)
        most = self._most(request, chosen.hop) if price else None
        if price is None or most is None:
            return nullcontext()
        return self._budget.hold(price, most, id, wire, chosen.model, self._beside(request))

    def _events(
        self, chosen: Chosen, request: ChatRequest, wish: Wish, hold: Hold | None
    ) -> AsyncGenerator[Event | Verdict, None]:
        events = self._run(chosen, request, wish, hold)
        return self._second_looks.over(events, request, chosen.decision) if chosen.close else events

    def _bounded(self, chosen: Chosen, request: ChatRequest, wish: Wish) -> ChatRequest:
        """`request` with a bound on the answer, without which there is none on its cost, where that is limited."""
        limits = self._settings.budget
        if chosen.decision.route == "local" or not (limits.limited or wish.max_cost is not None):
            return request
        return replace(request, max_tokens=request.max_tokens or limits.answer_tokens)

    async def _run(
        self, chosen: Chosen, request: ChatRequest, wish: Wish, hold: Hold | None
    ) -> AsyncGenerator[Event, None]:
        route, local = chosen.decision.route, self._settings.local
        if wish.privacy and local.is_elsewhere:
            message = f"This prompt is to stay here (x-upcall-privacy), and {local.endpoint} is another machine; "
            yield Failure(FailureCode.UNAVAILABLE, f"{message}set local.on_premises = true if it is yours.")
            return
        # What is set aside is to be in the file before the call, should this process not see its end.
        if route == "cloud" and self._settings.budget.limited and not await self.ledger.written():
            yield Failure(FailureCode.UNAVAILABLE, "The ledger, which counts for the budget, cannot be written now.")
            return
        model = await self._workers.get(route)
        if model is None:
            why = self._workers.why_down.get(route, "it did not start in time")
            yield Failure(FailureCode.UNAVAILABLE, f"The {route} model is not running: {why}")
            return
        if route == "cloud" and self._workers.cloud != self._settings.cloud:
            message = "The settings of the cloud were reloaded since this prompt was decided on; ask again."
            yield Failure(FailureCode.UNAVAILABLE, message)
            return
        if hold:
            hold.sent()
        async with aclosing(model.chat(request, chosen.hop)) as events:
            async for event in events:
                yield event

    async def _instead(self, chosen: Chosen, request: ChatRequest, failure: Failure, wish: Wish) -> Chosen | None:
        local = await self._workers.local_outline()
        failed = replace(chosen, failed=chosen.failed or failure.code, close=False)
        for hop in range(chosen.hop + 1, len(self._clouds)):
            cloud = self._clouds[hop]
            able = (cloud.images or not chosen.needs.images) and (cloud.tools or not chosen.needs.tools)
            state = self._state(local, request, wish, hop=hop)
            if able and policy.goes_on(chosen.decision, failure, wish, chosen.needs, state):
                return replace(failed, hop=hop, model=cloud.name)
        state, routing = self._state(local, request, wish), self._settings.routing
        decision = policy.instead(chosen.decision, failure, wish, chosen.needs, state, routing)
        return replace(failed, hop=0, decision=decision, model=self._name(decision, local)) if decision else None

    def _name(self, decision: Decision, local: ModelStatus) -> str:
        return local.name if decision.route == "local" else self._clouds[0].name

    def _explained(self, decision: Decision, failure: Failure) -> Failure:
        if decision.route == "cloud" and self._workers.standing.privacy:
            message = "Privacy mode was switched on, which cut this answer off; ask again for a local one."
            return Failure(FailureCode.UNAVAILABLE, message)
        return failure
