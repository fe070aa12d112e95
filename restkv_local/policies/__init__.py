"""Scores for cached tokens: one policy a file, listed in ``registry``."""
