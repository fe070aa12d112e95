"""llama-cpp-python's calls, options and dicts."""
