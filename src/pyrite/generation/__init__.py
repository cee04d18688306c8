"""Generates questions for a corpus with an LLM: sampling, prompts, requests and filters."""
