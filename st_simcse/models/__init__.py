"""A SentenceTransformer with the paper's poolings: made, loaded, adapted and saved."""
