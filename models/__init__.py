"""Chat models: the local engine, the cloud providers, and the processes that host them."""
