"""Routers: how likely a prompt is to need the strong model, judged on this machine."""
