"""Documents of all kinds as text with places: ``read_document`` for a file, ``parse_document`` for bytes."""

from restkv_local.documents.document import Document, Mark, Source, list_sources
from restkv_local.documents.reading import parse_document, read_document

__all__ = ["Document", "Mark", "Source", "list_sources", "parse_document", "read_document"]
