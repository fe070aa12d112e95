"""What is kept on disk: one checked container for all."""
