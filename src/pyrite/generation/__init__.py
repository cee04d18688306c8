"""Questions that an LLM generates for a corpus: sampling, prompts, requests and filters."""
