"""Does a router score a Portuguese prompt like its English twin? `python benchmarks/encoders.py --data D --encoder F`.

Spearman's rank correlation of each router's scores on 500 Arena-Hard prompts and their translations. Prints Markdown.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from routers.encoder import Encoder
from routers.registry import ROUTERS, load

LANGUAGES = ("pt", "es", "de", "fr", "ru", "zh")


def ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """Places of `values` in ascending order."""
    return np.argsort(np.argsort(values))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"))
    parser.add_argument("--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"))
    parser.add_argument("--routers", default=",".join(name for name in ROUTERS if name != "random"))
    options = parser.parse_args()
    rows = pq.read_table(options.data / "m_arena_hard_prompts_23lang.parquet").to_pylist()
    by_language: dict[str, dict[str, str]] = {}
    for row in rows:
        by_language.setdefault(row["lang"], {})[row["question_id"]] = row["prompt"]
    questions = sorted(by_language["en"])
    prompts = {language: [by_language[language][each] for each in questions] for language in ("en", *LANGUAGES)}
    print("| | " + " | ".join(LANGUAGES) + " |\n|---" + "|---" * len(LANGUAGES) + "|")
    for name in options.routers.split(","):
        router = load(name, options.encoder)
        scores = {language: ranks(router.score(texts)) for language, texts in prompts.items()}
        cells = [f"{np.corrcoef(scores['en'], scores[language])[0, 1]:.3f}" for language in LANGUAGES]
        print(f"| {name}, rank correlation to English | " + " | ".join(cells) + " |")
    encoder = Encoder(options.encoder)
    english = encoder.embed(prompts["en"])
    found = [
        f"{np.mean((encoder.embed(prompts[language]) @ english.T).argmax(axis=1) == np.arange(len(questions))):.3f}"
        for language in LANGUAGES
    ]
    print("| encoder, share whose English twin is nearest | " + " | ".join(found) + " |")


if __name__ == "__main__":
    main()
