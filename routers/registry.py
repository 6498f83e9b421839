"""Every router by name."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from routers.bert import BertRouter
from routers.causal_llm import CausalRouter, Judge
from routers.encoder import shared
from routers.interface import Router, RouterError
from routers.knn import NearestNeighboursRouter
from routers.mf import MatrixFactorizationRouter
from routers.minilm import FILE as MINILM
from routers.random import RandomRouter
from routers.sw_ranking import SimilarityWeightedRouter

ROUTERS: Mapping[str, Callable[[Path], Router]] = {
    "mf": lambda encoder: MatrixFactorizationRouter(shared(encoder)),
    "knn": lambda encoder: NearestNeighboursRouter(shared(encoder)),
    "sw_ranking": lambda encoder: SimilarityWeightedRouter(shared(encoder)),
    "bert": lambda encoder: BertRouter(encoder.with_name(MINILM)),
    "random": lambda encoder: RandomRouter(),
}
"""How each router is made from the path of the multilingual encoder, beside which the model store has MiniLM."""
NAMES = (*ROUTERS, CausalRouter.name)
"""All of them; `causal_llm` is made from a judge."""


def load(name: str, encoder_path: Path, judge: Judge | None = None) -> Router:
    """The router called `name`, ready to score; `judge` is the local model, for the router that asks it.

    Raises:
        RouterError: there is no such router, or what it needs is missing or damaged.
    """
    if name == CausalRouter.name:
        if judge is None:
            raise RouterError("The router causal_llm asks the local model: `upcall judge` trains and evaluates it.")
        return CausalRouter(judge)
    if name not in ROUTERS:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RouterError(f"There is no router {name!r}: {hint}the routers are {', '.join(sorted(NAMES))}.")
    return ROUTERS[name](encoder_path)
