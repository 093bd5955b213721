"""Pages, rendered here: one module a page; templates and static files beside them."""

from pathlib import Path

PAGES_DIR = Path(__file__).parent
