"""Model folders, texts to vectors, exact search."""
