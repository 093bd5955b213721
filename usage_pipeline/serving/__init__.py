"""The readers' side: what is published, its tables, the exports. Not how it is made."""
