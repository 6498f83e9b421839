"""Evaluation of the routers as RouteLLM did it; needs the `train` extra."""

from routers.evaluation.runner import Result, run

__all__ = ["Result", "run"]
