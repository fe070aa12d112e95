"""What a GGUF file holds, before llama.cpp sees it, and files made to measure with."""
