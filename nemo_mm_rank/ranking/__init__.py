"""From embeddings and queries to scores, and from scores to the blend."""
