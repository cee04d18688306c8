"""Exports a model to the formats of other runtimes, and proves that its embeddings are the same there."""
