"""A client for a pool of OpenAI-compatible servers: adaptive concurrency, retries, failover."""
