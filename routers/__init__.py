"""Routers: how likely a prompt is to need the strong model, judged on this machine."""

import os

# ONNX Runtime's releases for Linux (1.32) keep an identifier in ~/.cache and report their use to the makers. This, read
# once when it loads, forbids both.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
