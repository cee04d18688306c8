"""From judged candidates to batches: mining rules, conflict-free batches, losses."""
