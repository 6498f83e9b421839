"""The decode loop: many answers at once, one step of llama.cpp after the other, in a thread of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.interface import Confidence, Failure, FailureCode, Hidden, Progress, TextDelta
from models.llama.context import Context, Model
from models.llama.disk import DiskStates
from models.llama.distribution import Distribution, logprob_entry, packed
from models.llama.errors import RefusedError
from models.llama.sampler import Candidates, NoTokenLeftError
from models.llama.settings import LlamaSettings
from models.llama.slots import Slot, SlotPool
from models.llama.task import Ended, Mail, Output, Task
from models.llama.text import Piece, TextStream

_log = logging.getLogger(__name__)

_SMALLEST_CHUNK = 32
"""Prompt tokens per step beside running answers. Llama 3 8B reads 16 at a time at half the speed of 64."""
_SMALLEST_BATCH = 128
"""The same with nobody to hold up."""
_IDLE_SHARE = 0.01
"""Of the weights' size: keys and values of idle conversations that a step may have to read beside the weights."""
_LONGEST_STEP = 4.0
"""Seconds that a newcomer may have to wait for a step that only reads prompts, where larger ones hardly read faster."""


_REST = 2.0
"""Seconds without a request before conversations are written to disk: one that is being had changes all the time."""


class EngineEndedError(Exception):
    """The engine takes no more tasks: it was stopped, or has been idle for too long."""


class Engine:
    """Answers tasks over one context until stopped. `run` belongs in a thread of its own, the rest in any."""

    def __init__(
        self,
        model: Model,
        context: Context,
        settings: LlamaSettings,
        *,
        context_length: int,
        disk: DiskStates | None = None,
    ) -> None:
        self._vocabulary = model.vocabulary
        self._context = context
        self._settings = settings
        self._pool = SlotPool(
            context,
            settings.slots,
            context_length,
            saved_bytes=settings.saved_bytes,
            idle_bytes=int(model.size * _IDLE_SHARE),
            rewinds=model.rewinds,
            disk=disk,
        )
        self._candidates = Candidates(model.vocabulary.size)
        self._scratch = np.empty(model.vocabulary.size, np.float32)
        self._wake = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._ended = False
        self._answers: list[_Answer] = []
        self._computing_prompts: frozenset[Task] = frozenset()
        self._mail = Mail()
        self._prompt_rate = 0.0
        self._seconds_per_task = 0.0

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue the choices of one request. Raises `RefusedError` when the queue is full, `EngineEndedError`."""
        with self._wake:
            if self._ended:
                raise EngineEndedError
            self._drop_cancelled()
            free = self._settings.slots - len(self._answers)
            if len(self._waiting) + len(tasks) > self._settings.queue_limit + max(free, 0):
                wait = self._seconds_per_task * (len(self._waiting) + 1) / self._settings.slots
                raise RefusedError(
                    FailureCode.BUSY,
                    f"The local model already has {len(self._waiting)} requests waiting: try again later.",
                    retry_after=min(max(round(wait), 1), 60),
                )
            self._waiting.extend(tasks)
            self._wake.notify()

    def load(self) -> tuple[int, int]:
        """Choices that are being answered, and those that wait for a slot."""
        with self._wake:
            return len(self._answers), len(self._waiting)

    def cancel(self, task: Task) -> None:
        """End the task without another word; a prompt being processed is broken off."""
        # Order matters: the engine clears the abort flag before it looks at `cancelled` for the last time.
        task.cancelled = True
        if task in self._computing_prompts:
            self._context.abort.set()
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """Let `run` return soon, failing what is unanswered."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._context.abort.set()

    def run(self) -> None:
        """Answer until `stop`, or until there has been nothing to do for `idle_unload` seconds."""
        try:
            while self._wait_for_work():
                self._admit()
                self._step()
                self._mail.post()
        finally:
            with self._wake:
                self._ended = True
                unanswered = [*self._waiting, *(answer.task for answer in self._answers)]
                self._waiting.clear()
            for task in unanswered:
                self._tell(task, Failure(FailureCode.UNAVAILABLE, "The local model is being shut down."))
            self._mail.post()
        while self._pool.keep_next():
            pass

    def _wait_for_work(self) -> bool:
        def work() -> bool:
            return bool(self._ended or self._waiting or self._answers)

        if self._answers and not self._ended:
            return True
        with self._wake:
            resting = self._pool.keeps and not self._wake.wait_for(work, timeout=_REST)
        while resting and not work() and self._pool.keep_next():
            pass
        with self._wake:
            if not self._wake.wait_for(work, timeout=self._settings.idle_unload or None):
                self._ended = True
            return not self._ended

    def _admit(self) -> None:
        """Give slots to the head of the queue, first come first served."""
        if not self._waiting:
            return
        while self._waiting:
            with self._wake:
                self._drop_cancelled()
                task = self._waiting[0] if self._waiting else None
            slot = self._pool.acquire(task.prompt, task.reserve) if task else None
            if task is None or slot is None:
                break
            with self._wake:
                # Until here it counts as waiting, or one more would be let in; cancelled meanwhile, it may be gone.
                if self._waiting and self._waiting[0] is task:
                    self._waiting.popleft()
                self._answers.append(_Answer(task, slot))
        with self._wake:
            waiting = tuple(self._waiting)
        for position, task in enumerate(waiting):
            if task.position != position:
                task.position = position
                self._tell(task, Progress("queued", position=position))

    def _drop_cancelled(self) -> None:
        if any(task.cancelled for task in self._waiting):
            self._waiting = deque(task for task in self._waiting if not task.cancelled)

    def _step(self) -> None:
        """Compute one batch: a token of every running answer, and prompts as far as the rest of the batch goes."""
        for answer in [answer for answer in self._answers if answer.task.cancelled]:
            self._drop(answer)
        begun = any(answer.generated == 1 and not answer.in_prompt for answer in self._answers)
        hidden = self._settings.hidden_state and begun
        parts = self._compose(prompts=not hidden)
        self._computing_prompts = prompts = frozenset(answer.task for answer, _ in parts if answer.in_prompt)
        self._context.abort.clear()
        if not parts or self._ended or any(answer.task.cancelled for answer, _ in parts):
            return
        started = time.monotonic()
        result = self._context.decode(hidden=hidden)
        self._computing_prompts = frozenset()
        if result == 0:
            if prompts:
                self._measure(parts, time.monotonic() - started)
            for answer, tokens in parts:
                answer.slot.extend(tokens)
                answer.pending = answer.pending[len(tokens) :]
            for answer, _ in parts:
                if hidden and answer.generated == 1:
                    self._tell(answer.task, Hidden(packed(self._context.hidden(answer.row)), answer.task.choice))
                if not len(answer.pending):
                    self._advance(answer)
            return
        for answer, _ in parts:
            computed = answer.slot.held.copy()
            self._pool.rewind(answer.slot)
            answer.pending = np.concatenate([computed[answer.slot.length :], answer.pending])
        if result == 1 and not self._pool.make_any_room():
            self._fail(parts[-1][0], FailureCode.BUSY, "The local model has no memory left for this answer: try again.")
        elif result < 0:
            _log.error("llama_decode failed with %d", result)
            for answer in self._answers.copy():
                message = f"llama.cpp could not compute the answer (error {result}): try again, or another model."
                self._fail(answer, FailureCode.UNAVAILABLE, message)
            self._pool.forget()

    def _compose(self, *, prompts: bool) -> list[tuple["_Answer", NDArray[np.int32]]]:
        """Fill the context's batch; who takes part with which tokens. Without `prompts`, only running answers do."""
        self._context.clear_batch()
        running = [answer for answer in self._answers if not answer.in_prompt]
        room = (
            self._chunk(self._settings.stall, _SMALLEST_CHUNK)
            if running
            else self._chunk(_LONGEST_STEP, _SMALLEST_BATCH)
        )
        parts = []
        for answer in [*running, *(answer for answer in self._answers if answer.in_prompt)]:
            if answer.in_prompt and not (prompts and room and self._start(answer)):
                continue
            tokens = answer.pending[:room] if answer.in_prompt else answer.pending
            if answer.in_prompt:
                room -= len(tokens)
            whole = len(tokens) == len(answer.pending)
            answer.row = self._context.add(tokens, answer.slot.length, answer.slot.index, output=whole)
            parts.append((answer, tokens))
        return parts

    def _start(self, answer: "_Answer") -> bool:
        """Whether the prompt can be worked on now; the first time, this settles how much of it is there already."""
        if answer.cached is None and self._pool.follow(answer.slot):
            answer.cached = answer.slot.length
            answer.pending = answer.task.prompt[answer.cached :]
        return answer.cached is not None

    def _chunk(self, seconds: float, least: int) -> int:
        """Prompt tokens to compute in about so long, going by the steps so far."""
        return int(min(max(self._prompt_rate * seconds, least), self._settings.batch))

    def _measure(self, parts: Sequence[tuple["_Answer", NDArray[np.int32]]], seconds: float) -> None:
        tokens = sum(len(tokens) for _, tokens in parts)
        if tokens >= _SMALLEST_CHUNK:
            rate = tokens / seconds
            self._prompt_rate = 0.7 * self._prompt_rate + 0.3 * rate if self._prompt_rate else rate

    def _advance(self, answer: "_Answer") -> None:
        """Take the answer's next token from the logits just computed."""
        task, row = answer.task, self._context.row(answer.row)
        distribution = Distribution(row, self._scratch)
        if not distribution.is_number:
            message = "The model computes no numbers: its file is damaged; pull it again or choose another."
            return self._fail(answer, FailureCode.UNAVAILABLE, message)
        if answer.generated < self._settings.confidence_tokens:
            self._tell(task, Confidence(distribution.entropy, distribution.margin, choice=task.choice))
        try:
            token = task.sampler.sample(row, distribution.argmax, self._candidates)
        except NoTokenLeftError:
            message = "The model has no token that the required format allows here: simplify the schema."
            return self._fail(answer, FailureCode.BAD_REQUEST, message)
        answer.generated += 1
        if self._vocabulary.ends_answer(token):
            return self._end(answer, "stop")
        entry = None
        if task.logprobs is not None:
            entry = logprob_entry(distribution, token, task.logprobs, self._vocabulary.piece)
        self._say(answer, answer.text.push(self._vocabulary.piece(token), entry))
        if answer.text.stopped:
            return self._end(answer, "stop")
        if answer.generated >= task.max_tokens:
            return self._end(answer, "length")
        answer.pending = np.array([token], np.int32)
        return None

    def _say(self, answer: "_Answer", piece: Piece) -> None:
        if piece.text or piece.logprobs:
            logprobs = piece.logprobs if answer.task.logprobs is not None else None
            self._tell(answer.task, TextDelta(piece.text, answer.task.choice, logprobs))

    def _end(self, answer: "_Answer", reason: Literal["stop", "length"]) -> None:
        self._say(answer, answer.text.finish())
        seconds = time.monotonic() - answer.started
        self._seconds_per_task = 0.8 * self._seconds_per_task + 0.2 * seconds if self._seconds_per_task else seconds
        cached, stop = answer.cached or 0, answer.text.stopped
        self._tell(answer.task, Ended(reason, answer.task.choice, answer.generated, cached, stop))
        self._drop(answer)

    def _fail(self, answer: "_Answer", code: FailureCode, message: str) -> None:
        self._tell(answer.task, Failure(code, message))
        self._drop(answer)

    def _drop(self, answer: "_Answer") -> None:
        with self._wake:
            self._answers.remove(answer)
        self._pool.release(answer.slot)

    def _tell(self, task: Task, output: Output) -> None:
        if not task.cancelled:
            self._mail.put(task.outbox, output)


@dataclass(eq=False, slots=True)
class _Answer:
    """A task at work in a slot."""

    task: Task
    slot: Slot
    pending: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Tokens to compute before the next one can be picked."""
    cached: int | None = None
    """Prompt tokens taken over from earlier requests; None until the prompt is begun."""
    generated: int = 0
    row: int = 0
    text: TextStream = field(init=False)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.text = TextStream(self.task.stops)

    @property
    def in_prompt(self) -> bool:
        return self.generated == 0 or len(self.pending) > 1
