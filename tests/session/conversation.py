"""What tests of conversations do again and again."""

import numpy as np

from tests import builders

MODEL = builders.llama(n_head=9, n_head_kv=3, head_dim=64, n_embd=64)
SWA = builders.gemma3(head_dim=64)

WORDS = ("the", "ferry", "left", "quay", "in", "morning", "and", "came", "back", "evening", "tide")


def prose(n, seed=0):
    """Return n words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def say(session, text, **options):
    """Send a message; return the whole answer."""
    return "".join(session.send(text, **options))


def talk(session, n, *, first=0):
    """Hold ``n`` turns, different ones; return the answers."""
    return [say(session, f"{i}: {prose(12, seed=i)}?") for i in range(first, first + n)]


def cache(session):
    """Return everything the cache is: rows, true positions, what is tracked."""
    snapshot = session._engine.save()
    arrays = {"positions": snapshot.rows.positions, **snapshot.rows.figures}
    if snapshot.moments.first is not None:
        arrays |= {"first": snapshot.moments.first, "second": snapshot.moments.second}
    return snapshot.state, arrays


def assert_same_cache(one, other):
    """Compare two caches to the bit."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, array in one[1].items():
        np.testing.assert_array_equal(array, other[1][name], err_msg=name)
