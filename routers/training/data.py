"""The training sources: prompts, and how good each model's answer to each was.

Every source becomes one matrix of outcomes in 0 to 1, NaN where a model did not answer, or human votes between two
models.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Source:
    """Outcomes of several models on the same prompts; two groups of them stand for a strong and a weak model."""

    name: str
    prompts: list[str]
    outcomes: dict[str, NDArray[np.float32]]
    """Per model, shape `(len(prompts),)`, NaN where it did not answer."""
    strong: tuple[str, ...]
    weak: tuple[str, ...]
    groups: list[str]
    """A part of the source per prompt, such as a subject or a task: outcomes compare within one better than across."""
    weight: float = 1.0
    """How much it counts beside the others."""

    def quality(self, models: tuple[str, ...]) -> NDArray[np.float32]:
        """Mean outcome of `models` per prompt, NaN where none answered."""
        stacked = np.stack([self.outcomes[model] for model in models])
        answered = ~np.isnan(stacked)
        total = np.where(answered, stacked, 0).sum(axis=0)
        return np.where(answered.any(axis=0), total / np.maximum(answered.sum(axis=0), 1), np.nan).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Votes:
    """Human votes between two anonymous models."""

    prompts: list[str]
    first: list[str]
    second: list[str]
    outcome: NDArray[np.float32]
    """1 where the first won, 0 where the second did, a half for a tie."""
    tiers: dict[str, int]
    """RouteLLM's tier of each model, 0 the strongest."""


def sources(data: Path) -> list[Source]:
    """Every source whose licence allows shipping what is trained on it, without the benchmarks' prompts."""
    return [
        _solutions(data),
        _validation(data),
        _wide(data, "mmlu_pro_wide", MMLU_PRO_STRONG, MMLU_PRO_WEAK, "category"),
        _wide(data, "llmrouter_dc_9models", DC_STRONG, DC_WEAK, None),
        _wide(data, "lmeval_small_models_wide", LMEVAL_STRONG, LMEVAL_WEAK, "task", LMEVAL_TASKS),
        _long(data, "zeroeval_math_crux", "id", "correct", 1.0, ZEROEVAL_STRONG, ZEROEVAL_WEAK, "dataset"),
        _long(
            data, "arena_bench_v1_gpt4_scores", "question_id", "score", 10.0, ARENA_BENCH_STRONG, ARENA_BENCH_WEAK, None
        ),
        _long(
            data, "arena_hard_v01_battles", "question_id", "p_model_wins", 1.0, ARENA_HARD_STRONG, ARENA_HARD_WEAK, None
        ),
    ]


def held_out(data: Path) -> list[Source]:
    """Sources that only choose between ways of training: what is trained on them could not be shipped."""
    return [
        _wide(data, "routerbench_0shot_partial", ("gpt-4-1106-preview",), ROUTERBENCH_WEAK, "eval_name"),
        _long(
            data, "code_humaneval_mbpp_plus", "example_id", "pass1", 1.0,
            CODE_STRONG, ("mixtral-8x7b-instruct",), "dataset",
        ),
        _alpaca(data),
    ]  # fmt: skip


def votes(data: Path) -> Votes:
    """The arena's votes, without prompts of fewer than 16 characters (as RouteLLM) or of the benchmarks."""
    table = pq.read_table(data / "arena55k_subset.parquet")
    leaked = leaks(data, "arena55k_subset")
    rows = [row for row in table.to_pylist() if len(row["prompt"] or "") >= 16 and not leaked(row["prompt"])]
    value = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}
    tiers = {row[f"model_{side}"]: row[f"tier_{side}"] for row in rows for side in "ab"}
    return Votes(
        [row["prompt"] for row in rows],
        [row["model_a"] for row in rows],
        [row["model_b"] for row in rows],
        np.array([value[row["winner"]] for row in rows], dtype=np.float32),
        tiers,
    )


def fingerprint(data: Path, names: list[str]) -> str:
    """Hash of the data files `names`, so that an artifact says what it came from."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update((data / f"{name}.parquet").read_bytes())
    if "mmlu_questions" in names:
        digest.update(GOLDEN.read_bytes())
    return digest.hexdigest()


def benchmark_prompts(data: Path) -> set[str]:
    """Every prompt of the three benchmarks, contaminated rows included."""
    columns = {"routellm_mmlu": "prompt", "routellm_gsm8k": "prompt", "routellm_mt_bench": "turn1"}
    return {
        text
        for name, column in columns.items()
        for text in pq.read_table(data / f"{name}.parquet", columns=[column])[column].to_pylist()
    }


def _solutions(data: Path) -> Source:
    """Golden labels without running a model: the longer the worked solution, the likelier a model errs on the way.

    A model that does each of k steps rightly with probability p solves the problem with p^k. Half of k is the number of
    calculations that the reference solution marks, half its length in sentences of fifteen words.
    """
    rows = [row for row in pq.read_table(data / "gsm8k_questions.parquet").to_pylist() if row["split"] == "train"]
    leaked = leaks(data, "gsm8k_questions")
    rows = [row for row in rows if not leaked(row["question"])]
    steps = np.array(
        [max(row["answer"].count("<<"), 1) + len(row["answer"].split("####")[0].split()) / 15 for row in rows]
    )
    outcomes = {f"step-{right}": (right ** (steps / 2)).astype(np.float32) for right in (0.97, 0.9)}
    return Source(
        "gsm8k_questions",
        [row["question"] for row in rows],
        outcomes,
        ("step-0.97",),
        ("step-0.9",),
        ["gsm8k"] * len(rows),
    )


def _validation(data: Path) -> Source:
    """Golden labels as in the paper: MMLU's validation questions, put to a local model by `daemon.tools.golden`.

    How likely it took the right choice stands for how a weak model does; an answer key stands for the strong one.
    """
    prompts = [prompt for prompt, _ in validation_questions(data)]
    with np.load(GOLDEN, allow_pickle=False) as stored:
        right = dict(zip(stored["key"].tolist(), stored["right"].tolist(), strict=True))
    weak = np.array([right.get(key(prompt), np.nan) for prompt in prompts], dtype=np.float32)
    outcomes = {"answer key": np.ones_like(weak), "qwen2.5-coder-1.5b": weak}
    groups = ["mmlu"] * len(prompts)
    return Source(
        "mmlu_questions", prompts, outcomes, ("answer key",), ("qwen2.5-coder-1.5b",), groups, weight=GOLDEN_WEIGHT
    )


GOLDEN_WEIGHT = 3.0
"""Chosen on sources left out; `routers/results/README.md` has the others."""
GOLDEN = Path(__file__).with_name("golden.npz")
"""`key` of each question and `right`, the model's chance of the right choice among the four; no text."""


def validation_questions(data: Path) -> Iterator[tuple[str, str]]:
    """With choices, and the letter of the right one: MMLU's for validation and development, less what its test asks."""
    leaked = leaks(data, "mmlu_questions")
    for row in pq.read_table(data / "mmlu_questions.parquet").to_pylist():
        prompt = "\n".join([row["question"].strip(), *(f"{letter}. {row[letter]}" for letter in "ABCD")])
        if row["split"] != "test" and not leaked(prompt):
            yield prompt, row["answer"]


def key(prompt: str) -> str:
    """Names a prompt where its text is not kept."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def question(prompt: str) -> str:
    """What a person would have typed: `prompt` without the solved examples and answer formats of its harness."""
    shown = _EXAMPLES.split(prompt)[-1]
    for frame in _FRAMES:
        shown = frame.sub("", shown)
    return shown.strip() or prompt


_EXAMPLES = re.compile(r"Answer: ?\n?[A-E]\n\n(?:Please answer with the letter of the correct answer\.\n\n)?")
_FRAMES = (
    re.compile(r"\A\s*## Question:\s*"),
    re.compile(r"\s*## Instruction\s.*\Z", re.DOTALL),
    re.compile(r"\AYou are given a Python function and an assertion.*?\n\n(?=\[PYTHON\])", re.DOTALL),
    re.compile(r"\s*Print only a single choice .*\Z", re.DOTALL),
    re.compile(r"\A(?:Question|Q|问题)[:：]\s*"),  # noqa: RUF001
    re.compile(r"\s*(?:Answer:|\nA:[^\n]*|\n答案[:：].*)\Z"),  # noqa: RUF001
)


def leaks(data: Path, name: str) -> Callable[[str], bool]:
    """Whether a prompt of the file `name` repeats one of a benchmark: it was flagged, or asks the same question."""
    rows = pq.read_table(data / "leakage_flags.parquet", columns=["file", "prompt"]).to_pylist()
    flagged = {row["prompt"] for row in rows if row["file"] == f"{name}.parquet"}
    asked = _benchmark_stems(data)
    return lambda prompt: prompt in flagged or stem(question(prompt)) in asked


@functools.cache
def _benchmark_stems(data: Path) -> frozenset[str]:
    mmlu = pq.read_table(data / "mmlu_questions.parquet", columns=["split", "question"]).to_pylist()
    test = [row["question"] for row in mmlu if row["split"] == "test"]  # a few more than RouteLLM's file holds
    return frozenset(stem(prompt) for prompt in (*benchmark_prompts(data), *test))


def stem(prompt: str) -> str:
    """Letters and digits of the question alone, where it has enough of them: MMLU-Pro adds choices to MMLU's items."""
    whole, first = (_MARKS.sub("", text.lower()) for text in (prompt, _FIRST_CHOICE.split(prompt)[0]))
    return first if len(first) >= 12 else whole


_MARKS = re.compile(r"[\W_]+")
_FIRST_CHOICE = re.compile(r"\n\s*\(?A[.)]")


def _wide(
    data: Path,
    name: str,
    strong: tuple[str, ...],
    weak: tuple[str, ...],
    group: str | None,
    only: frozenset[str] | None = None,
) -> Source:
    table = pq.read_table(data / f"{name}.parquet")
    leaked = leaks(data, name)
    prompts = table["prompt"].to_pylist()
    groups = table[group].to_pylist() if group else [name] * len(prompts)
    keep = [
        row
        for row, (prompt, part) in enumerate(zip(prompts, groups, strict=True))
        if prompt and (only is None or part in only) and not leaked(prompt)
    ]
    shown = [question(prompts[row]) for row in keep]
    models = [column for column in table.column_names if _is_outcome(column, str(table.schema.field(column).type))]
    outcomes = {
        model: np.array([np.nan if value is None else value for value in table[model].to_pylist()], dtype=np.float32)[
            keep
        ]
        for model in models
    }
    return Source(name, shown, outcomes, strong, weak, [groups[row] for row in keep])


def _is_outcome(column: str, kind: str) -> bool:
    return kind in ("bool", "float", "double") and not column.endswith("|cost_usd")


def _long(
    data: Path,
    name: str,
    key: str,
    value: str,
    highest: float,
    strong: tuple[str, ...],
    weak: tuple[str, ...],
    group: str | None,
    keep: Callable[[dict[str, object]], bool] = lambda row: True,
) -> Source:
    leaked = leaks(data, name)
    rows = [row for row in pq.read_table(data / f"{name}.parquet").to_pylist() if row["prompt"] and keep(row)]
    repeated = {prompt for prompt in {row["prompt"] for row in rows} if leaked(prompt)}
    rows = [row for row in rows if row["prompt"] not in repeated and row[value] is not None]
    index: dict[tuple[object, object], int] = {}
    prompts: list[str] = []
    groups: list[str] = []
    for row in rows:
        identity = (row[group] if group else None, row[key])
        if identity not in index:
            index[identity] = len(prompts)
            prompts.append(question(row["prompt"]))
            groups.append(str(row[group]) if group else name)
    outcomes: dict[str, NDArray[np.float32]] = {}
    for row in rows:
        column = outcomes.setdefault(row["model"], np.full(len(prompts), np.nan, dtype=np.float32))
        column[index[row[group] if group else None, row[key]]] = float(row[value]) / highest
    return Source(name, prompts, outcomes, strong, weak, groups)


def _alpaca(data: Path) -> Source:
    source = _long(
        data, "alpaca_eval", "prompt", "p_model_wins", 1.0, (), ("Mixtral-8x7B-Instruct-v0.1",), "dataset",
        lambda row: row["annotator"] == "alpaca_eval_gpt4_turbo_fn" and row["baseline"] == "gpt4_1106_preview",
    )  # fmt: skip
    baseline = 1 - source.outcomes["Mixtral-8x7B-Instruct-v0.1"]
    return Source(
        source.name, source.prompts, source.outcomes | {"gpt4_1106_preview": baseline},
        ("gpt4_1106_preview",), source.weak, source.groups,
    )  # fmt: skip


MMLU_PRO_STRONG = (
    "api:gpt4o",
    "gemini-1.5-pro-002",
    "api:deepseek",
    "Meta-Llama-3_1-70B-Instruct",
    "DeepSeek-Coder-V2",
)
ROUTERBENCH_WEAK = ("mistralai/mixtral-8x7b-chat",)
CODE_STRONG = ("claude-3-opus-20240229", "gpt-4-1106-preview", "meta-llama-3-70b-instruct")
MMLU_PRO_WEAK = ("Mixtral-8x7B-Instruct-v0.1", "Meta-Llama-3_1-8B-Instruct", "Mixtral-8x7B-v0.1", "Meta-Llama-3-8B")
DC_STRONG = ("llama-3.1-nemotron-51b-instruct", "llama-3.3-nemotron-super-49b-v1")
DC_WEAK = ("mistral-7b-instruct-v0.3", "codegemma-7b")
LMEVAL_STRONG = ("llama3.1-8b", "gemma3-4b")
LMEVAL_WEAK = ("llama3.2-1b", "gemma3-1b")
LMEVAL_TASKS = frozenset(
    (
        "arc_challenge",
        "arc_easy",
        "openbookqa",
        "agieval_logiqa_en",
        "agieval_sat_math",
        "agieval_sat_en_without_passage",
        "agieval_lsat_ar",
    )
)
"""In English and knowledge or reasoning; the rest are common sense, or in a language that the benchmarks lack."""
ZEROEVAL_STRONG = ("gpt-4-turbo-2024-04-09", "gpt-4o-2024-05-13", "claude-3-opus-20240229", "gpt-4-0314")
ZEROEVAL_WEAK = (
    "Mixtral-8x7B-Instruct-v0.1",
    "Meta-Llama-3-8B-Instruct",
    "Meta-Llama-3.1-8B-Instruct",
    "gpt-3.5-turbo-0125",
)
ARENA_BENCH_STRONG = ("gpt-4-1106-preview",)
ARENA_BENCH_WEAK = ("Mixtral-8x7B-Instruct-v0.1", "gpt-3.5-turbo-1106", "openchat_3.5", "Starling-LM-7B-alpha")
ARENA_HARD_STRONG = ("gpt-4o", "claude-3-opus-20240229", "llama3_1_405b", "gpt-4o-2024-08-06", "mistral_large_2")
ARENA_HARD_WEAK = ("llama3_1_8b", "mistral_nemo", "gpt-3.5-turbo-0125", "mixtral-8x22b-instruct-v0.1")
