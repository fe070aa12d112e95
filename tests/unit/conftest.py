"""Settings of the property tests."""

from hypothesis import settings

# No deadline: a busy machine must not fail a test that is right.
settings.register_profile("restkv", deadline=None)
settings.load_profile("restkv")
