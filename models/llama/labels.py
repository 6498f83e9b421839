"""What the model thinks of a few next tokens: one prompt, no answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.interface import FailureCode
from models.llama.distribution import Distribution
from models.llama.errors import RefusedError
from models.llama.sampler import Candidates
from models.llama.task import Outbox, Task
from models.llama.vocabulary import Vocabulary


class LabelReader:
    """Stands where a sampler does, and notes the labels' log-probabilities before the one token that ends the task."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self.logprobs: tuple[float, ...] = ()

    def sample(self, row: NDArray[np.float32], argmax: int, candidates: Candidates) -> int:
        """See `Sampler.sample`."""
        distribution = Distribution(row)
        self.logprobs = tuple(map(distribution.logprob, self._tokens))
        return argmax


def label_task(
    text: str, labels: Sequence[str], outbox: Outbox, *, vocabulary: Vocabulary, context_length: int
) -> tuple[Task, LabelReader]:
    """A task that reads `text` as it is, without a chat template, and where its labels' log-probabilities will be.

    Raises `RefusedError` where a label is not one token or the text does not fit the context.
    """
    prompt = vocabulary.tokenize([(text, False)], add_bos=True)
    if not 0 < len(prompt) < context_length:
        message = f"The text has {len(prompt)} tokens; from 1 to {context_length - 1} can be judged."
        raise RefusedError(FailureCode.CONTEXT_LENGTH, message)
    reader = LabelReader([_token(label, vocabulary) for label in labels])
    task = Task(prompt=prompt, max_tokens=1, sampler=reader, stops=(), logprobs=None, choice=0, outbox=outbox)
    return task, reader


def _token(label: str, vocabulary: Vocabulary) -> int:
    # Some tokenizers put a blank before every text.
    token = int(vocabulary.tokenize([(label, False)], add_bos=False)[-1]) if label else -1
    if token < 0 or vocabulary.piece(token).strip() != label.encode():
        raise RefusedError(FailureCode.BAD_REQUEST, f"The label {label!r} is not one token of the local model.")
    return token
