"""Do conversations keep their route? upcall's rule beside two that others use, on MT-Bench's questions and follow-ups.

    python benchmarks/conversations.py --data DIR [--routers mf,knn] [--json FILE]

A route flips when a follow-up that asks nothing new (written for this benchmark; nothing is trained on it) moves the
conversation to the other model. Of MT-Bench's own second turns, which do ask something, it counts how many are routed
as the harder of the two turns by itself would be. The peers: RouteLLM's rule, the last message alone; and all user
messages as one text.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from daemon.routing.policy import conversation_score
from daemon.routing.scorer import user_turns
from models.store import Store
from routers.calibration import shipped
from routers.correction import EmbeddingRouter
from routers.encoder import Encoder
from routers.follow_up import FollowUps
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
    "Alright, I had to take a call, where were we, please resume.",
    "Nice work, I really appreciate the effort you put into this one!",
    "Could you finish the paragraph that you were in the middle of writing?",
    "Yes, that is what I meant, please proceed as you proposed.",
    "Hmm, I am not convinced, would you double check what you just told me?",
    "Ok perfect, ship it and let me know once everything has been uploaded.",
    "The text ends abruptly, please write the remaining part of it as well.",
    "Sorry for the delay, I was reading your reply, do go on with the next part.",
    "I don't follow, please explain that again in plain words for a beginner.",
    "That's enough for today, see you tomorrow and thanks again for everything.",
    "Desculpa a demora, estive a ler tudo com calma, avança lá para o próximo ponto.",
    "Ficou ótimo, podes publicar isso assim que tiveres tudo pronto.",
    "Acho que te enganaste, volta a verificar o que acabaste de escrever.",
    "O texto acabou a meio de uma frase, manda-me o resto se faz favor.",
    "Ok, entendido, agradeço imenso a paciência que tiveste comigo hoje.",
    "Podes explicar outra vez isso tudo, mas de uma forma mais simples?",
    "Sim, é isso mesmo, faz como disseste e depois avisa-me quando acabares.",
    "please go on with what you were saying, I did not quite finish reading, thanks a lot",
)
ASKING = (
    "Now prove it formally by induction on the number of vertices of the graph.",
    "Please continue with the proof of the theorem for the case where n is even.",
    "Thanks, now write a recursive version that runs in O(log n) time and handles overflow.",
    "Great, can you also compute the probability that at least two balls are red?",
    "Explica agora porque é que o algoritmo falha quando o grafo tem ciclos negativos.",
    "Continua, mas agora resolve a equação diferencial com condições de fronteira periódicas.",
    "Now derive the asymptotic variance of that estimator under heteroskedasticity.",
    "Rewrite it so that it is thread-safe and lock-free, and explain the memory ordering.",
    "Obrigado. E se a moeda for viciada com probabilidade p, qual é o valor esperado?",
    "Are you sure? What happens with the second law of thermodynamics in that case?",
    "Now translate the function to Rust and add error handling for malformed input.",
    "Make it shorter, and prove that the bound is tight.",
)
"""Follow-ups that do ask something, several of which begin like those that do not."""
Score = Callable[[str], float]
Rule = Callable[[Score, Sequence[str]], float]
PEERS: dict[str, Rule] = {
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
    empty = recogniser(Encoder(encoder))
    missed = [turn for turn in ASKING if empty(turn)]
    print(f"of {len(ASKING)} follow-ups that ask something, taken for ones that do not: {len(missed)}")
    print("| router | cloud share | rule | flips, short | flips, long | second turns as the harder turn |")
    print("|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['router']} | {row['cloud_share']:.0%} | {row['rule']} | {row['flips_short']:.1%} "
            f"| {row['flips_long']:.1%} | {row['as_harder']:.1%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(router: EmbeddingRouter, questions: Sequence[tuple[str, str]]) -> list[dict[str, object]]:
    @cache
    def score(prompt: str) -> float:
        return float(router.score([prompt])[0])

    empty = recogniser(router.encoder)

    def ours(score: Score, turns: Sequence[str]) -> float:
        first, *others = user_turns([{"role": "user", "content": turn} for turn in turns])
        return conversation_score([score(turn) for turn in (first, *(other for other in others if not empty(other)))])

    rules = {"upcall": ours, **PEERS}
    results = []
    for share in SHARES:
        threshold = shipped(router.name).threshold(share)
        for name, rule in rules.items():

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


def recogniser(encoder: Encoder) -> Callable[[str], bool]:
    """Whether a turn is a follow-up that asks nothing of its own."""
    follow_ups = FollowUps()
    return cache(lambda turn: bool(follow_ups.are(encoder.embed([turn]))[0]))


if __name__ == "__main__":
    main()
