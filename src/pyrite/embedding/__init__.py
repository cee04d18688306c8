"""Model folders, text encoding, and exact search."""
