"""Semantic search with a trained model: an index on disk, nearest neighbours, and a page."""
