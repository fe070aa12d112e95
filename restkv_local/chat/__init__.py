"""Conversations and questions about documents, over the engine. No NumPy in this file: ``--help`` stays fast."""

from typing import Literal

Mode = Literal["auto", "per-question", "shared", "ingest"]  # how documents are read for questions
