"""Documents of all kinds as text with places: ``read_document`` for a file, ``parse_document`` for bytes."""

from restkv_local.documents.document import Document, Mark
from restkv_local.documents.reading import parse_document, read_document

__all__ = ["Document", "Mark", "parse_document", "read_document"]
