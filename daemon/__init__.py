"""The upcall daemon: HTTP in, decision, model, HTTP out."""
