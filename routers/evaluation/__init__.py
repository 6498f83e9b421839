"""Evaluation of the routers as RouteLLM did it; needs the `train` extra."""
