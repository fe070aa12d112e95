"""One benchmark's rules a file; each turns a prediction and a sample into a score between 0 and 1."""
