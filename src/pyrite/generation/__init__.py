"""Questions that an LLM makes for a corpus that has none: what to ask it, and which of its answers to keep."""
