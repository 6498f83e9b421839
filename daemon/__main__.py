"""`python -m daemon` is `upcall`."""

from daemon.cli import main

main()
