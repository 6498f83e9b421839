"""The command line's commands; `daemon.cli` gathers them."""
