"""Wire formats: each module turns its own requests into a `ChatRequest` and events back into its own answers."""
