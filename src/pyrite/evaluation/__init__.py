"""Retrieval metrics, significance tests, agreement of a judge with known grades, and model selection."""
