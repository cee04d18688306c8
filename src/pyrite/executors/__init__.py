"""Run steps: one step in this process, or a complete run with each step in its own process."""
