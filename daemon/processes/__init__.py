"""The processes that a daemon is made of, and the lines between them."""
