"""Is the judge worth its money? Probing it, and calibrating it against people."""
