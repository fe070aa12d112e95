"""Conversations and questions about documents, over the engine."""
