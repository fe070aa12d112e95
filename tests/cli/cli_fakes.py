"""A session without a model, for what the command line itself must do: text, streams, exit codes.

Run as a script it is `restkv-chat` on that session, for tests that need a terminal.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

from restkv_local.errors import CacheFullError


class FakeSession:
    """Answers by repeating the message; a few words make it slow or fail."""

    def __init__(self):
        self.sent = []
        self.turns = []
        self.n_cleared = 0
        self.is_closed = False
        self.report = SimpleNamespace(timings={}, to_json=lambda: {"timings": {}})

    def send(self, text, *, documents=(), on_progress=None):
        self.sent.append((text, [getattr(one, "text", one) for one in documents]))
        self.is_closed = False
        answer = []
        reason = "stop"
        if "boom" in text:
            raise CacheFullError("no free rows are left")
        if "unheard" in text:
            raise KeyboardInterrupt
        self.turns.append(text)
        try:
            if "burst" in text:
                yield "half an "
                raise CacheFullError("no free rows are left")
            if "interrupted" in text:
                yield "half an "
                raise KeyboardInterrupt
            if "prefill" in text:
                for done in range(1, 6):
                    time.sleep(0.2 if "slow" in text else 0)
                    on_progress(SimpleNamespace(processed=done, total=5, seconds=done, events=0))
                answer.append("read")
                yield "read"
            elif "slow" in text:
                for i in range(600):
                    answer.append(f"word{i} ")
                    yield answer[-1]
                    time.sleep(0.05)
            elif "escape" in text:
                answer.append("a\x1b]0;title\x07b")
                yield answer[-1]
            else:
                for piece in ("heard: ", text):
                    answer.append(piece)
                    yield piece
        except (KeyboardInterrupt, GeneratorExit):
            reason = "cancelled"
            raise
        finally:
            self.is_closed = True
            self.report = make_report("".join(answer), reason)

    def clear(self):
        self.n_cleared += 1

    def context(self):
        return SimpleNamespace(
            budget=2048,
            capacity=2816,
            kept=2048.0,
            seen=31204,
            evicted=29156.0,
            events=24,
            n_pinned=31,
            n_turns=len(self.sent),
            bytes=45 * 2**20,
            bytes_full=686 * 2**20,
        )


def make_report(response="", finish_reason="stop", **kv):
    report = {
        "response": response,
        "finish_reason": finish_reason,
        "model": "fake",
        "version": "0",
        "usage": {"prompt_tokens": 12480, "completion_tokens": 233, "total_tokens": 12713},
        "timings": {
            "prompt_n": 12480,
            "prompt_ms": 30291.0,
            "prompt_per_second": 412.0,
            "predicted_n": 233,
            "predicted_ms": 12663.0,
            "predicted_per_second": 18.4,
            "cache_n": 0,
        },
        "kv": {
            "policy": "restkv",
            "allocation": "uniform",
            "prefill": "bounded",
            "positions": "compact",
            "budget": 2048,
            "capacity": 2816,
            "peak": 2624,
            "seen": 31204,
            "kept": 2048,
            "evicted": 29156,
            "events": 24,
            "score_ms": 250.0,
            "compact_ms": 60.0,
            "guide_ms": 900.0,
            "bytes": 45 * 2**20,
            "bytes_full": 686 * 2**20,
            **kv,
        },
    }
    return SimpleNamespace(**report, to_json=lambda: report)


def install(session):
    """Put ``session`` where chat opens one; returns the dict that gets the call's arguments."""
    from restkv_local.cli import chat

    call = {}

    @contextmanager
    def open_session(model, settings, **options):
        call.update(model=model, settings=settings, **options)
        yield session

    chat_open, chat.open_session = chat.open_session, open_session
    call["restore"] = lambda: setattr(chat, "open_session", chat_open)
    return call


if __name__ == "__main__":
    from restkv_local.cli.main import chat_main

    install(FakeSession())
    chat_main(sys.argv[1:])
