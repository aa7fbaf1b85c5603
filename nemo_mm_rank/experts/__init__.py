"""Expert Embedding Engine: both sides of a pair, embedded by several experts."""
