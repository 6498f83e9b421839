"""Do conversations keep their route? upcall's rule beside two that others use, on MT-Bench's questions and follow-ups.

    python benchmarks/conversations.py --data DIR [--routers mf,knn] [--json FILE]

A route flips when a follow-up that asks nothing new (written for this benchmark) moves the conversation to the other
model. Of MT-Bench's own second turns, which do ask something, it counts how many are routed as the harder of the two
turns by itself would be. The peers: RouteLLM's rule, the last message alone; and all user messages as one text.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from daemon.policy import conversation_score
from daemon.scorer import user_turns
from models.store import Store
from routers.calibration import shipped
from routers.interface import Router
from routers.registry import load

SHARES = (0.1, 0.2, 0.3, 0.5)
SHORT = (
    "continue", "Continue.", "go on", "Go on, please.", "yes", "ok", "Thanks!", "obrigado", "Obrigada!", "continua",
    "now in Python", "Now in Portuguese, please.", "e em português?", "em inglês, por favor", "commit it", "run it",
    "try again", "again", "shorter", "Shorter, please.", "more detail", "why?", "porquê?", "tens a certeza?",
    "are you sure?", "fix it", "do it", "and then?", "weiter", "et en français ?", "¿y en español?", "続けて",
    "继续", "👍",
)  # fmt: skip
LONG = (
    "Please go on from where you stopped, and do not repeat what you have already said.",
    "That was cut off in the middle of a sentence, could you send me the rest of it?",
    "Thank you very much, that is exactly what I was looking for, have a nice day!",
    "Looks good to me, please commit it and push it to the main branch when you are done.",
    "Podes continuar a partir de onde ficaste, sem repetir o que já disseste antes?",
    "Muito obrigado pela ajuda, era mesmo isto que eu precisava para o meu trabalho.",
)
Rule = Callable[[Callable[[str], float], Sequence[str]], float]
RULES: dict[str, Rule] = {
    "upcall": lambda score, turns: conversation_score([score(turn) for turn in _scored(turns)]),
    "last message alone": lambda score, turns: score(turns[-1]),
    "all messages as one": lambda score, turns: score("\n".join(turns)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--routers", default="mf,knn,sw_ranking", help="comma-separated")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    rows = pq.read_table(options.data / "routellm_mt_bench.parquet").to_pylist()
    questions = [(row["turn1"], row["turn2"]) for row in rows]
    encoder = Store().path("use-multilingual")
    results = [row for name in options.routers.split(",") for row in measure(load(name, encoder), questions)]
    print(f"{len(questions)} conversations, {len(SHORT)} short and {len(LONG)} long follow-ups")
    print("| router | cloud share | rule | flips, short | flips, long | second turns as the harder turn |")
    print("|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['router']} | {row['cloud_share']:.0%} | {row['rule']} | {row['flips_short']:.1%} "
            f"| {row['flips_long']:.1%} | {row['as_harder']:.1%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(router: Router, questions: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
    @cache
    def score(prompt: str) -> float:
        return float(router.score([prompt])[0])

    results = []
    for share in SHARES:
        threshold = shipped(router.name).threshold(share)
        for name, rule in RULES.items():

            def goes_up(*turns: str, rule: Rule = rule, threshold: float = threshold) -> bool:
                return rule(score, turns) >= threshold

            harder = [goes_up(*turns) == (max(map(score, turns)) >= threshold) for turns in questions]
            flips = {
                kind: float(
                    np.mean([goes_up(first, more) != goes_up(first) for first, _ in questions for more in texts])
                )
                for kind, texts in (("flips_short", SHORT), ("flips_long", LONG))
            }
            row = {"router": router.name, "version": router.version, "cloud_share": share, "rule": name}
            results.append({**row, **flips, "as_harder": float(np.mean(harder))})
    return results


def _scored(turns: Sequence[str]) -> list[str]:
    return user_turns([{"role": "user", "content": turn} for turn in turns])


if __name__ == "__main__":
    main()
