"""One family of tasks a file; each yields samples, the same ones for the same request."""
