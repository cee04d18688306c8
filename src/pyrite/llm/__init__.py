"""A client for OpenAI-compatible servers: one model at several addresses, bounded load, quick recovery."""
