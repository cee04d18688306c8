"""Grades by people: which pairs to grade, the local page to grade them on, and the gain corrected by the grades."""
