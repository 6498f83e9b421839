"""Lessons whose truth is known: the hidden state tells half of what decides, the first tokens a part of the rest."""

import numpy as np

from routers.training.second_look import Lessons

WIDTH = 24
SOURCES = ("mmlu_pro", "agieval_en", "crux", "mmlu")


def made_lessons(each: int = 500) -> Lessons:
    random = np.random.default_rng(0)
    count = each * len(SOURCES)
    source = np.repeat(SOURCES, each)
    hidden = random.normal(size=(count, WIDTH))
    unsure = random.normal(size=count)
    weak_chance = 1 / (1 + np.exp(1.5 * hidden[:, 0] + unsure))
    margin = 1 / (1 + np.exp(unsure + random.normal(size=count)))
    signals = np.stack([2 * (1 - margin), margin, 2 * (1 - margin), margin], axis=1)
    weak = (random.random(count) < weak_chance).astype(np.float64)
    strong = (random.random(count) < 0.85).astype(np.float64)
    first = np.clip(0.62 + 0.01 * random.normal(size=count) - 0.002 * weak, 0.01, 0.99)
    return Lessons(source, first, hidden, signals, signals, weak, strong)
