"""Texts, without models: where they can be cut, what they speak of, their n-grams and MinHash signatures."""
