"""Mining rules, conflict-free batches, and losses."""
