"""Budgets for layers and KV heads: one allocator a file, listed in ``registry``."""
