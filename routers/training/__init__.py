"""Training of the routers; needs the `train` extra."""
