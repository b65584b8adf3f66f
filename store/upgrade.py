"""`python -m store.upgrade`: bring the database of the settings to head."""

from __future__ import annotations

from store.database import Database
from store.settings import Settings

if __name__ == "__main__":
    Database(Settings().database).upgrade()
