"""Training and evaluation data: reading, downloading, batching, views, prompts and a teacher's embeddings."""
