"""Puts many short questions to a model at once, and notes how sure it was: what probes are trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.llama.context import Context, Model
from models.llama.distribution import Distribution
from models.llama.errors import LoadError
from models.llama.fit import fit
from models.llama.settings import LlamaSettings
from models.llama.slots import common_prefix
from models.llama.template import Renderer, choose_template

INSTRUCTION = "Answer with the letter of the right choice only."
OPENING = "The answer is ("
"""Stands before the letter, as evaluation harnesses have it: a model that begins with other words has decided on none
where its answer begins."""
VERSION = 2
"""Of how questions are put: what came of another way is no answer to them."""
WATCHED = 16
"""Tokens from the start of an answer whose distributions are noted."""
_AT_ONCE = 11
_SEQUENCES = 1 + 2 * _AT_ONCE
"""What prompts begin with alike, and for each question its answer and, beside that, its choice."""
_CELLS = 6144
_BLOCK = 64
"""Questions among which a common beginning is looked for."""

Tokens = NDArray[np.int32]
State = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a person would type it."""

    prompt: str
    labels: tuple[str, ...] = ()
    """The letters to choose from; none for an answer in words."""
    max_tokens: int = 256
    """Of an answer in words."""


@dataclass(slots=True)
class Attempt:
    """What the model made of a question, greedily and through its chat template."""

    answer: str = ""
    """The likeliest of the labels, or the text."""
    at_prompt: State = field(default_factory=lambda: np.empty(0, np.float16))
    """The last hidden state at the end of the prompt, shape `(n_embd,)`."""
    at_first: State = field(default_factory=lambda: np.empty(0, np.float16))
    """The same at the first token of the answer, as a `Hidden` event carries it."""
    entropies: list[float] = field(default_factory=list)
    """Of the first tokens, in nats, as `Confidence` events carry them. Two where labels were chosen from."""
    margins: list[float] = field(default_factory=list)
    label_logprobs: list[float] = field(default_factory=list)
    """After `OPENING`, in nats."""


class Quiz:
    """The model in the GGUF file at `path`, for questions only. Raises `LoadError`.

    `trusted` is whether the file's own chat template may run, as with `LlamaSettings.trust_template`.
    """

    def __init__(self, path: Path, *, trusted: bool = False, threads: int = 0) -> None:
        asked = LlamaSettings(
            path=str(path), name=path.stem, context_length=2048, slots=_SEQUENCES, cache_tokens=_CELLS, threads=threads
        )
        self._settings = fit(asked).settings
        self._model = Model(str(path), repack=self._settings.repack, on_progress=lambda _: True)
        self._vocabulary = self._model.vocabulary
        try:
            template = choose_template(self._model.metadata, self._vocabulary, trusted=trusted)
            self._renderer = Renderer(template, self._vocabulary, context_length=self._settings.context_length)
            self._context = Context(self._model, self._settings)
        except (ValueError, LoadError) as error:
            self._model.close()
            raise LoadError(f"{path}: {error}") from error
        self._prefix = np.empty(0, np.int32)

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def ask(self, questions: Sequence[Asked]) -> Iterator[tuple[int, Attempt]]:
        """The index of each question, with what came of it; questions longer than one batch are left out.

        As many are computed at a time as a batch holds. What prompts begin with alike is computed once.
        """
        for start in range(0, len(questions), _BLOCK):
            tokens = {
                start + index: self._tokens(question)
                for index, question in enumerate(questions[start : start + _BLOCK])
            }
            self._share_prefix(list(tokens.values()))
            waiting = [index for index in tokens if len(tokens[index]) - len(self._prefix) <= self._settings.batch]
            while waiting:
                count = self._fitting([(questions[index], tokens[index]) for index in waiting])
                batch, waiting = waiting[:count], waiting[count:]
                yield from zip(batch, self._answer([(questions[each], tokens[each]) for each in batch]), strict=True)

    def _tokens(self, question: Asked) -> Tokens:
        text = f"{question.prompt}\n\n{INSTRUCTION}" if question.labels else question.prompt
        prompt: Tokens = self._renderer.prompt([{"role": "user", "content": text}], ())
        return prompt

    def _share_prefix(self, prompts: Sequence[Tokens]) -> None:
        """Have sequence 0 hold what all `prompts` begin with, less a token that each computes for itself."""
        shared = prompts[0][:-1]
        for prompt in prompts:
            shared = shared[: common_prefix(shared, prompt[:-1])]
        shared = shared[: self._settings.batch]
        if not np.array_equal(shared, self._prefix):
            self._context.cut(0, 0)
            self._prefix = shared
            self._compute([(0, shared, 0)])

    def _fitting(self, waiting: Sequence[tuple[Asked, Tokens]]) -> int:
        """How many of the next questions one batch and the context hold."""
        room, cells = self._settings.batch, self._context.cells - len(self._prefix)
        for count, (question, tokens) in enumerate(waiting[:_AT_ONCE]):
            new = len(tokens) - len(self._prefix)
            room -= new
            # No token of the opening is shorter than a character.
            cells -= new + (len(OPENING) + 2 if question.labels else question.max_tokens)
            if count and (room < 0 or cells < 0):
                return count
        return min(len(waiting), _AT_ONCE)

    def _answer(self, batch: Sequence[tuple[Asked, Tokens]]) -> list[Attempt]:
        shared = len(self._prefix)
        running = [_Running(number, question, tokens) for number, (question, tokens) in enumerate(batch, 1)]
        for each in running:
            self._context.cut(each.sequence, 0)
            self._context.share(0, each.sequence, shared)
        self._compute(
            [(each.sequence, tokens[shared:-1], shared) for each, (_, tokens) in zip(running, batch, strict=True)]
        )
        self._choose([each for each in running if each.labels])
        while left := [each for each in running if not each.over]:
            self._compute([(each.sequence, [each.token], each.position) for each in left], output=True)
            for index, each in enumerate(left):
                self._advance(each, index)
        for each in running:
            self._context.cut(each.sequence, 0)
        return [each.attempt for each in running]

    def _compute(self, parts: Sequence[tuple[int, Sequence[int] | Tokens, int]], *, output: bool = False) -> None:
        """Add tokens to sequences that hold so many already; with `output`, one each, and keep what comes of them."""
        parts = [part for part in parts if len(part[1])]
        if not parts:  # as where a question stands alone, and all but its last token is the common beginning
            return
        self._context.clear_batch()
        for sequence, tokens, position in parts:
            self._context.add(tokens, position, sequence, output=output)
        if result := self._context.decode(hidden=output):
            raise LoadError(f"{self._settings.path}: llama.cpp could not compute a batch (error {result}); try again")

    def _choose(self, running: Sequence["_Running"]) -> None:
        """Let each choose a label where it would stand, in a sequence beside its own, which holds all but a token."""
        ways = [self._choices(each.labels) for each in running]
        for each in running:
            self._context.share(each.sequence, each.sequence + _AT_ONCE, each.position)
        self._compute(
            [
                (each.sequence + _AT_ONCE, [each.token, *opening[:-1]], each.position)
                for each, (opening, _) in zip(running, ways, strict=True)
            ]
        )
        self._compute(
            [
                (each.sequence + _AT_ONCE, opening[-1:], each.position + len(opening))
                for each, (opening, _) in zip(running, ways, strict=True)
            ],
            output=True,
        )
        for index, (each, (_, letters)) in enumerate(zip(running, ways, strict=True)):
            distribution = self._distribution(index)
            each.attempt.label_logprobs = [distribution.logprob(letter) for letter in letters]
            each.attempt.answer = each.labels[int(np.argmax(each.attempt.label_logprobs))]
            self._context.cut(each.sequence + _AT_ONCE, 0)

    def _choices(self, labels: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens that open an answer with any of the labels, and the one that follows for each."""
        written = [self._vocabulary.tokenize([(OPENING + label, False)], add_bos=False) for label in labels]
        shared = min(common_prefix(written[0], other) for other in written[1:])
        return list(written[0][:shared]), [int(tokens[shared]) for tokens in written]

    def _distribution(self, index: int) -> Distribution:
        distribution = Distribution(self._context.row(index))
        if not distribution.is_number:
            raise LoadError(f"{self._settings.path} computes no numbers: its file is damaged; pull it again")
        return distribution

    def _advance(self, each: "_Running", index: int) -> None:
        attempt, distribution = each.attempt, self._distribution(index)
        if each.steps < WATCHED:
            attempt.entropies.append(distribution.entropy)
            attempt.margins.append(distribution.margin)
        if each.steps < 2:
            state = np.clip(self._context.hidden(index), -65504, 65504).astype(np.float16)
            attempt.at_prompt, attempt.at_first = (state, state) if each.steps == 0 else (attempt.at_prompt, state)
        each.token, each.position, each.steps = distribution.argmax, each.position + 1, each.steps + 1
        each.ended = each.ended or self._vocabulary.ends_answer(each.token)
        if not each.ended and not each.labels:
            each.text += self._vocabulary.piece(each.token)
            attempt.answer = each.text.decode("utf-8", "replace")
        # The first token is computed whatever it is, for its hidden state.
        each.over = each.steps > 1 and (each.ended or each.steps >= each.most)


class _Running:
    """A question at work in a sequence."""

    def __init__(self, sequence: int, question: Asked, tokens: Tokens) -> None:
        self.sequence = sequence
        self.labels = question.labels
        self.most = 2 if question.labels else question.max_tokens
        self.token, self.position = int(tokens[-1]), len(tokens) - 1
        self.attempt = Attempt()
        self.text = bytearray()
        self.steps = 0
        self.ended = self.over = False
