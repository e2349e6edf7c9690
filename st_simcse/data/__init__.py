"""Texts on their way to a batch: files and data sets, public ones by name, views, prompts, a teacher's embeddings."""
