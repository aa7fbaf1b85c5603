"""Models that need no download and no training: deterministic features, hashed text, plain words."""
