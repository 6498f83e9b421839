"""Public questions whose right answer is known, and whether a strong model found it."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from routers.training.data import key as prompt_key
from routers.training.data import leaks, validation_questions
from routers.training.data import question as without_frame

LONGEST = 280
"""Characters. Longer questions take a model on two cores seconds each."""
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Question:
    """One question, as a person would type it."""

    source: str
    prompt: str
    gold: str
    strong: float
    """How right the source's strong model was, 0 to 1."""
    kind: Literal["choice", "number", "literal"] = "choice"
    """A letter of the choices in the prompt, the last number of a text, or a Python literal."""
    choices: int = 4

    @property
    def key(self) -> str:
        """Names the question where its text is not kept."""
        return prompt_key(self.prompt)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(LETTERS[: self.choices]) if self.kind == "choice" else ()

    @property
    def max_tokens(self) -> int:
        """Of an answer in words."""
        return 256 if self.kind == "number" else 40

    def is_right(self, answer: str) -> bool:
        if self.kind == "choice":
            return answer == self.gold
        if self.kind == "number":
            numbers = _NUMBER.findall(answer)
            return bool(numbers) and float(numbers[-1].replace(",", "")) == float(self.gold.replace(",", ""))
        return literal(answer) == literal(self.gold)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where questions come from."""

    read: Callable[[Path], Iterable[Question]]
    strong: str
    """The model whose answers are recorded."""
    trains: bool
    """Whether what is shipped may be trained on it: benchmarks and files without a licence only judge."""


def recorded(name: str, data: Path) -> Iterable[Question]:
    """The questions of a source out of the data files in `data`."""
    return ORIGINS[name].read(data)


def sample(
    data: Path, counts: Mapping[str, int], read: Callable[[str, Path], Iterable[Question]] = recorded
) -> list[Question]:
    """So many short questions of each source as `counts` says, in an order that depends on their texts alone.

    The sources alternate, so that any beginning of the list holds some of each.
    """
    drawn: list[tuple[float, str, Question]] = []
    for name, count in counts.items():
        pool = {each.key: each for each in read(name, data) if len(each.prompt) <= LONGEST}
        # From the end: what a second look learns from was chosen by looks at those from the beginning.
        chosen = [pool[key] for key in sorted(pool, reverse=True)[:count]]
        drawn += [((place // BLOCK + 1) * BLOCK / len(chosen), name, each) for place, each in enumerate(chosen)]
    return [each for _, _, each in sorted(drawn, key=lambda entry: entry[:2])]


BLOCK = 32
"""Questions of one source in a row: alike, so that a model reads them together."""


def _mmlu(data: Path) -> Iterable[Question]:
    for row in pq.read_table(data / "routellm_mmlu.parquet").to_pylist():
        if not row["contaminated"] and row["gold"]:
            prompt = row["prompt"].removesuffix("Answer:").strip()
            yield Question("mmlu", prompt, row["gold"], float(row["strong_correct"]))


def _validation(data: Path) -> Iterable[Question]:
    for prompt, gold in validation_questions(data):
        yield Question("mmlu_validation", prompt, gold, 1.0)


def _mmlu_pro(data: Path) -> Iterable[Question]:
    leaked = leaks(data, "mmlu_pro_wide")
    for row in pq.read_table(data / "mmlu_pro_wide.parquet").to_pylist():
        choices = len(re.findall(r"^[A-J]\. ", row["prompt"], re.MULTILINE))
        if not leaked(row["prompt"]) and row["api:gpt4o"] is not None and row["gold"] in LETTERS[:choices]:
            yield Question("mmlu_pro", row["prompt"], row["gold"], float(row["api:gpt4o"]), choices=choices)


@dataclass(frozen=True, slots=True)
class Part:
    """Of AGIEval, in one language."""

    tasks: frozenset[str]
    introduction: str
    """Of the choices."""


AGIEVAL: Mapping[str, Part] = {
    "agieval_en": Part(
        frozenset(("aqua_rat", "logiqa_en", "sat_math", "sat_en_without_passage", "lsat_ar")), "Answer Choices:"
    ),
    "agieval_zh": Part(
        frozenset(
            (
                "jec_qa_kd",
                "logiqa_zh",
                "gaokao_biology",
                "gaokao_chemistry",
                "gaokao_geography",
                "gaokao_history",
                "gaokao_mathqa",
                "gaokao_physics",
            )
        ),
        "选项：",  # noqa: RUF001
    ),
}


def _agieval(name: str) -> Callable[[Path], Iterable[Question]]:
    def read(data: Path) -> Iterable[Question]:
        for row in pq.read_table(data / "lmeval_small_models_wide.parquet").to_pylist():
            if row["task"].removeprefix("agieval_") in AGIEVAL[name].tasks:
                yield from agieval(name, row["prompt"], ast.literal_eval(row["gold"]), float(row["llama3.1-8b"]))

    return read


def agieval(name: str, query: str, gold: Sequence[int], strong: float) -> Iterable[Question]:
    """The question in a `query` as evaluation harnesses put it, where it has choices of which one is right."""
    stem, _, rest = without_frame(query).rpartition(AGIEVAL[name].introduction)
    choices = [choice.strip() for choice in re.split(r"\([A-E]\)", rest)[1:]]
    if stem and len(gold) == 1 and gold[0] < len(choices):
        yield Question(name, listed(stem.strip(), choices), LETTERS[gold[0]], strong, choices=len(choices))


def _gsm8k(data: Path) -> Iterable[Question]:
    table = pq.read_table(data / "gsm8k_questions.parquet").to_pylist()
    gold = {_plain(row["question"]): row["gold"] for row in table}
    for row in pq.read_table(data / "routellm_gsm8k.parquet").to_pylist():
        if not row["contaminated"] and (right := gold.get(_plain(row["prompt"]))):
            yield Question("gsm8k", row["prompt"], right, float(row["strong_correct"]), "number", 0)


def _crux(data: Path) -> Iterable[Question]:
    for row in pq.read_table(data / "zeroeval_math_crux.parquet").to_pylist():
        if row["dataset"] == "crux" and row["model"] == "gpt-4-turbo-2024-04-09":
            yield from crux(row["prompt"], row["gold"], float(row["correct"]))


def crux(prompt: str, gold: str, strong: float) -> Iterable[Question]:
    """What the code in `prompt` computes, where that is a literal."""
    code = re.search(r"\[PYTHON\]\n(.*)\[/PYTHON\]", prompt, re.DOTALL)
    if code and literal(gold) is not None:
        yield Question("crux", f"{CRUX}\n\n{code[1].strip()}", gold, strong, "literal", 0)


CRUX = "What does the assertion compare with? Answer with the Python literal only."
ORIGINS: Mapping[str, Origin] = {
    "mmlu": Origin(_mmlu, "gpt-4-1106-preview", trains=False),
    "mmlu_validation": Origin(_validation, "answer key", trains=False),
    "gsm8k": Origin(_gsm8k, "gpt-4-1106-preview", trains=False),
    "mmlu_pro": Origin(_mmlu_pro, "gpt-4o", trains=True),
    "agieval_en": Origin(_agieval("agieval_en"), "llama3.1-8b", trains=True),
    "agieval_zh": Origin(_agieval("agieval_zh"), "llama3.1-8b", trains=True),
    "crux": Origin(_crux, "gpt-4-turbo-2024-04-09", trains=True),
    # The data files have these without their choices, so that they are only read from where they are published.
    **{
        name: Origin(lambda data: (), "llama3.1-8b", trains=True)
        for name in ("arc_easy", "arc_challenge", "openbookqa")
    },
}
"""By name."""


def listed(stem: str, choices: Iterable[str]) -> str:
    """A question with its choices, as a person would type it."""
    return "\n".join([stem, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def _plain(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


def literal(text: str) -> object:
    """The value of the last line of code in an answer, or what it compares with; None where there is none."""
    code = re.sub(r"```(?:python)?", "", text).strip()
    for line in (code, code.splitlines()[0] if code else "", code.rpartition("==")[2].strip()):
        try:
            return repr(ast.literal_eval(line))
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return None


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
