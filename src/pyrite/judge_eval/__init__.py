"""Evaluation of the judge: ``probe`` judges a sample, ``calibrate`` measures the agreement with human grades."""
