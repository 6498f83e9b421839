"""The pieces of a provider's streamed answer, in OpenAI's shape, as events."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from any_llm.types.completion import ChatCompletionChunk
from pydantic_core import from_json

from models.cloud.completions import BESIDE, Call, Chunk, Delta
from models.cloud.tool_names import whole_names
from models.interface import ChatRequest, Event, Finish, FinishReason, TextDelta, ToolCallDelta, Usage

_FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    # Z.ai's own (https://docs.z.ai/api-reference/llm/chat-completion).
    "model_context_window_exceeded": "length",
    "sensitive": "content_filter",
}


class Answer:
    """Reads the answer to `request`, chunk by chunk."""

    def __init__(self, request: ChatRequest) -> None:
        self._open = set(range(request.n))
        self._beside = request.beside
        self._calls: dict[tuple[int, int], int] = {}
        """Numbers of the calls by their choice and the provider's own number."""
        self._ids: dict[tuple[int, int], str | None] = {}
        """Of the calls, by their choice and number."""
        self._arguments: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        self._custom: set[tuple[int, int]] = set()
        """Calls of tools that take no JSON, by choice and number; what they take is beside."""
        self._turn: defaultdict[int, int] = defaultdict(int)
        """The call that each choice is at."""
        self._ahead: defaultdict[int, list[tuple[int, TextDelta | ToolCallDelta]]] = defaultdict(list)
        """Pieces whose turn has not come, each with that, by choice."""
        self._names = whole_names(request.tools)
        self._usage: Usage | None = None

    @property
    def complete(self) -> bool:
        """Every choice said how it ended. A stream that ends before is cut, however cleanly."""
        return not self._open

    def read(self, chunk: ChatCompletionChunk | Chunk) -> Iterator[Event]:
        """The events of one chunk, usage excepted, which some servers repeat: `usage` has the last."""
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            cached = (details and details.cached_tokens) or getattr(chunk.usage, "prompt_cache_hit_tokens", None)
            written = (details and getattr(details, "cache_write_tokens", None)) or 0
            by_age = details and getattr(details, "cache_creation_token_details", None)
            long = (by_age and by_age.ephemeral_1h_input_tokens) or 0
            # Less than none would lower what was spent.
            prompt = max(chunk.usage.prompt_tokens, 0)
            # xAI counts what it reasons in the total alone, and bills it as answer.
            completion = max(chunk.usage.completion_tokens, 0, (chunk.usage.total_tokens or 0) - prompt)
            self._usage = Usage(prompt, completion, max(cached or 0, 0), max(written - long, 0), long)
        for choice in chunk.choices:
            delta = choice.delta or Delta()
            logprobs = choice.logprobs and choice.logprobs.content
            beside = _beside(delta, BESIDE) if self._beside else None
            text = delta.content or ("" if beside else delta.refusal) or ""
            if text or logprobs or beside:
                entries = [e if isinstance(e, Mapping) else e.model_dump(mode="json") for e in logprobs or ()] or None
                said = TextDelta(text, choice.index, entries, beside)
                yield from self._in_turn(said, self._count(choice.index)) if self._ids else (said,)
            for call in delta.tool_calls or ():
                name = call.function.name if call.function else None
                index = self._number(choice.index, call.index, call.id, name)
                arguments = (call.function and call.function.arguments) or ""
                beside = _beside(call, ("custom", "extra_content")) if self._beside else None
                if beside and "custom" in beside:
                    self._custom.add((choice.index, index))
                name = self._names.get(name, name) if name else None
                piece = ToolCallDelta(index, arguments, call.id or None, name, choice.index, beside)
                yield from self._in_turn(piece, index)
            # Some servers have an empty one in every chunk.
            if choice.finish_reason and choice.index in self._open:
                yield from self._finish(choice.index, choice.finish_reason)

    @property
    def usage(self) -> Usage | None:
        """What the provider says it counted; None where it never did."""
        return self._usage

    def _number(self, choice: int, index: int, id: str | None, name: str | None) -> int:
        """The call's among those of its choice, from 0 on."""
        # Some number calls by Anthropic's content blocks, which text has, too. Gemini numbers none, so that all are 0.
        # And some servers make up an id for each piece of one call, of which only the first has the name.
        known = self._calls.get((choice, index))
        if known is None or (id and name and self._ids[choice, known] not in (None, id)):
            known = self._calls[choice, index] = self._count(choice)
        self._ids[choice, known] = self._ids.get((choice, known)) or id or None
        return known

    def _count(self, choice: int) -> int:
        return sum(1 for other, _ in self._ids if other == choice)

    def _in_turn(self, piece: TextDelta | ToolCallDelta, place: int) -> Iterator[Event]:
        """`piece`, once the calls before its `place` are through: most formats have one thing after the other."""
        choice, turn = piece.choice, self._turn[piece.choice]
        if place > turn:
            self._ahead[choice].append((place, piece))
        elif place == turn:
            yield self._given(piece)
        # What comes behind a whole call's arguments is blanks at best.
        while self._ahead[choice] and _is_json("".join(self._arguments[choice, turn])):
            turn = self._turn[choice] = turn + 1
            yield from self._caught_up(choice)

    def _caught_up(self, choice: int) -> Iterator[Event]:
        """The pieces that had to wait for what is now the turn of `choice`."""
        turn, ahead = self._turn[choice], self._ahead[choice]
        yield from [self._given(piece) for place, piece in ahead if place == turn]
        ahead[:] = [(place, piece) for place, piece in ahead if place > turn]

    def _given(self, piece: TextDelta | ToolCallDelta) -> TextDelta | ToolCallDelta:
        if isinstance(piece, ToolCallDelta) and piece.arguments:
            self._arguments[piece.choice, piece.index].append(piece.arguments)
        return piece

    def _finish(self, choice: int, reason: str) -> Iterator[Event]:
        self._open.discard(choice)
        count = self._count(choice)
        for turn in range(self._turn[choice], count):
            self._turn[choice] = turn
            yield from self._caught_up(choice)
            # A call without parameters may stream no arguments at all, and nothing is no JSON.
            if not self._arguments[choice, turn] and (choice, turn) not in self._custom:
                yield ToolCallDelta(turn, "{}", choice=choice)
        self._turn[choice] = count
        yield from self._caught_up(choice)
        yield Finish(_FINISH.get(reason, "stop"), choice)


def _is_json(text: str) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _beside(part: object, names: Iterable[str]) -> Mapping[str, Any] | None:
    """The fields `names` of `part` that hold something; any-llm's own models have other things by some of them."""
    if not isinstance(part, Delta | Call):
        return None
    return {name: value for name in names if (value := getattr(part, name))} or None
