"""The local engine: continuous batching of GGUF models over llama-cpp-python's low-level bindings."""
