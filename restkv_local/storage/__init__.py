"""What is kept on disk: a checked container, logs that go on, factors of a model's weights."""
