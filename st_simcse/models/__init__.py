"""SentenceTransformer models with the paper's poolings: building, loading, adapting and saving them."""
