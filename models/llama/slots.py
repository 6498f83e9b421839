"""Which sequence of the context serves which request, and what of earlier requests it can start from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.llama.context import Context
from models.llama.disk import DiskStates, HeldState, Tokens

_WORTH_WAITING = 32
"""Tokens that another way to a prefix must save before its cost (a restored state, waiting for another prompt) pays."""


@dataclass(eq=False, slots=True)
class Slot:
    """One sequence of the context."""

    index: int
    tokens: Tokens
    """What the sequence holds, in the first `length` places."""
    length: int = 0
    reserved: int = 0
    """Cells that its request may come to use; 0: the slot is idle."""
    prompt: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    """What the sequence of a busy slot will hold once its prompt is computed."""
    leader: "Slot | None" = None
    """A slot at work on a prefix of this one's prompt; worth waiting for."""
    used: int = 0
    """When it was last used, counted in requests."""

    def extend(self, tokens: Tokens | list[int]) -> None:
        self.tokens[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)

    @property
    def held(self) -> Tokens:
        return self.tokens[: self.length]


class SlotPool:
    """Hands out slots so that as little as possible of a prompt is computed again.

    All slots share the context's cells. A request is admitted only when the cells for its longest possible answer are
    there, so none has to be thrown out half way. Idle slots keep what they hold until a request needs their place or
    they hold more than `idle_bytes` together: each step reads them, too. Then it moves to memory outside the context,
    up to `saved_bytes`, least recently used first out. With `disk` both are written there when `keep_next` is called.
    """

    def __init__(
        self,
        context: Context,
        count: int,
        capacity: int,
        *,
        saved_bytes: int,
        idle_bytes: int,
        rewinds: bool,
        disk: DiskStates | None = None,
    ) -> None:
        self._context = context
        self._slots = [Slot(index, np.zeros(capacity, np.int32)) for index in range(count)]
        self._saved = _SavedStates(saved_bytes)
        self._idle_bytes = idle_bytes
        self._rewinds = rewinds
        self._disk = disk if rewinds else None
        self._clock = 0

    def acquire(self, prompt: Tokens, reserve: int) -> Slot | None:
        """A slot for `prompt` and its answer, `reserve` tokens together, with what it can take over; None: not now."""
        idle = [slot for slot in self._slots if not slot.reserved]
        if not idle or sum(slot.reserved for slot in self._slots) + reserve > self._context.cells:
            return None
        self._forget_deleted()
        source = max(self._slots, key=lambda slot: self._common(prompt, slot.held))
        reusable = self._common(prompt, source.held)
        # A conversation that goes on continues in its slot. One that only begins alike is left alone and shared from.
        goes_on = source in idle and 2 * reusable >= source.length
        target = source if goes_on else min(idle, key=lambda slot: (slot is source, slot.length > 0, slot.used))
        self._hand_over(target)
        if not goes_on:
            self._save(target)
        if target is source:
            self._cut(target, reusable)
        else:
            self._cut(target, 0)
            if reusable:
                self._context.share(source.index, target.index, reusable)
                target.extend(prompt[:reusable])
        self._clock += 1
        target.used, target.reserved, target.prompt = self._clock, reserve, prompt
        self._make_room()
        self._put_aside()
        self._restore_better(target)
        target.leader = self._leader(target)
        return target

    def follow(self, slot: Slot) -> bool:
        """Whether `slot` may go on: not while its leader still works on their common prefix, which it then takes."""
        leader = slot.leader
        if leader is None:
            return True
        common = self._common(slot.prompt, leader.prompt)
        if leader.reserved and leader.length < common:
            return False
        slot.leader = None
        common = self._common(slot.prompt, leader.held)
        if common > slot.length:
            self._cut(slot, 0)
            self._context.share(leader.index, slot.index, common)
            slot.extend(slot.prompt[:common])
        return True

    def release(self, slot: Slot) -> None:
        """The slot's request has ended; it keeps what it holds."""
        slot.reserved, slot.leader = 0, None
        slot.prompt = slot.held.copy()

    def rewind(self, slot: Slot) -> None:
        """Make the context agree with the slot again after a step that was broken off."""
        self._cut(slot, slot.length)

    def make_any_room(self) -> bool:
        """Give up what the least recently used idle slot holds; False where none holds anything."""
        holding = [slot for slot in self._slots if not slot.reserved and slot.length]
        if holding:
            oldest = min(holding, key=lambda slot: slot.used)
            self._save(oldest)
            self._cut(oldest, 0)
        return bool(holding)

    @property
    def keeps(self) -> bool:
        """Whether `keep_next` has anywhere to write to."""
        return self._disk is not None and not self._disk.closed

    def keep_next(self) -> bool:
        """Write one more conversation to disk; False once all are there that can be."""
        if self._disk is None or self._disk.closed:
            return False
        self._forget_deleted()
        saved = [HeldState(tokens, data.nbytes, partial(np.asarray, data)) for tokens, data in self._saved.states()]
        held = [
            HeldState(slot.held, self._context.state_size(slot.index), partial(self._context.save, slot.index))
            for slot in sorted(self._slots, key=lambda slot: slot.used)
            if slot.length > _WORTH_WAITING
        ]
        return self._disk.add_next([*saved, *held])

    def forget(self) -> None:
        """Nothing in the context is valid any more."""
        self._context.forget()
        for slot in self._slots:
            slot.length = 0

    def _forget_deleted(self) -> None:
        """Where somebody has deleted any conversation from the disk, forget all that no request is using."""
        if self._disk is not None and not self._disk.closed and self._disk.were_deleted():
            self._saved.forget()
            for slot in self._slots:
                if not slot.reserved:
                    self._cut(slot, 0)

    def _common(self, prompt: Tokens, held: Tokens) -> int:
        """Tokens of `prompt` that need not be computed; its last always is, for its logits."""
        return common_prefix(prompt[:-1], held) if self._rewinds else 0

    def _cut(self, slot: Slot, length: int) -> None:
        if not self._context.cut(slot.index, length):
            self._context.cut(slot.index, 0)
            length = 0
        slot.length = length

    def _hand_over(self, leader: Slot) -> None:
        """Give those who wait for an idle slot what they wait for, before it serves another request.

        To wait on for that other one would be wrong, and without an end where it comes to wait for them.
        """
        for slot in self._slots:
            if slot.leader is leader:
                self.follow(slot)

    def _save(self, slot: Slot) -> bool:
        """Whether all that is worth keeping of the slot is now in memory."""
        return not self._rewinds or slot.length <= _WORTH_WAITING or self._saved.add(slot, self._context)

    def _put_aside(self) -> None:
        leaders = [slot.leader for slot in self._slots]
        idle = [slot for slot in self._slots if slot.length and not slot.reserved and slot not in leaders]
        held = sum(self._context.state_size(slot.index) for slot in idle)
        for slot in sorted(idle, key=lambda slot: slot.used):
            if held <= self._idle_bytes:
                break
            held -= self._context.state_size(slot.index)
            if self._save(slot):
                self._cut(slot, 0)

    def _make_room(self) -> None:
        def wanted() -> int:
            return sum(slot.reserved or slot.length for slot in self._slots)

        while wanted() > self._context.cells and self.make_any_room():
            pass

    def _restore_better(self, slot: Slot) -> None:
        """Replace what the slot took over by a saved state that begins more of its prompt."""

        def common(tokens: Tokens) -> int:
            return self._common(slot.prompt, tokens) if len(tokens) <= len(slot.tokens) else 0

        state = self._saved.best(common)
        if state is not None and common(state.tokens) >= slot.length + _WORTH_WAITING:
            self._restore(slot, state.tokens, state.data, common(state.tokens))
        kept = self._disk.best(common) if self._disk else None
        if self._disk and kept is not None and common(kept.tokens) >= slot.length + _WORTH_WAITING:
            data = self._disk.load(kept)
            if data is not None:
                self._restore(slot, kept.tokens, data, common(kept.tokens))

    def _restore(self, slot: Slot, tokens: Tokens, data: NDArray[np.uint8], reusable: int) -> None:
        self._cut(slot, 0)
        if self._context.restore(slot.index, data):
            slot.length = len(tokens)
            slot.tokens[: slot.length] = tokens
            self._cut(slot, reusable)
        else:
            self._cut(slot, 0)

    def _leader(self, slot: Slot) -> Slot | None:
        """A busy slot that will soon hold much more of this prompt than was to be had."""
        busy = [
            other for other in self._slots if other is not slot and other.reserved and other.length < len(other.prompt)
        ]
        best = max(busy, key=lambda other: self._common(slot.prompt, other.prompt), default=None)
        if best is None or self._common(slot.prompt, best.prompt) < slot.length + _WORTH_WAITING:
            return None
        return best


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Length of the longest beginning that both share."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass(eq=False, frozen=True, slots=True)
class _State:
    tokens: Tokens
    data: NDArray[np.uint8]


class _SavedStates:
    """Keys and values of past conversations in ordinary memory, the longest unused at the front."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._states: list[_State] = []

    def add(self, slot: Slot, context: Context) -> bool:
        """False where it is larger than the whole budget."""
        tokens = slot.held
        known = any(common_prefix(state.tokens, tokens) == len(tokens) for state in self._states)
        size = context.state_size(slot.index)
        if known or size > self._budget:
            return known
        self._states = [state for state in self._states if common_prefix(state.tokens, tokens) < len(state.tokens)]
        while self._states and size + sum(state.data.nbytes for state in self._states) > self._budget:
            self._states.pop(0)
        self._states.append(_State(tokens.copy(), context.save(slot.index)))
        return True

    def states(self) -> list[tuple[Tokens, NDArray[np.uint8]]]:
        """All of them, the longest unused first."""
        return [(state.tokens, state.data) for state in self._states]

    def forget(self) -> None:
        self._states.clear()

    def best(self, common: Callable[[Tokens], int]) -> _State | None:
        """The state of the greatest `common`, which becomes the last to go."""
        state = max(self._states, key=lambda candidate: common(candidate.tokens), default=None)
        if state is not None and common(state.tokens):
            self._states.remove(state)
            self._states.append(state)
        return state
