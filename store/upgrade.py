"""`python -m store.upgrade`: bring the database of the settings to head."""

from __future__ import annotations

from store.database import Database
from store.startup import settings_or_exit

if __name__ == "__main__":
    Database(settings_or_exit().database).upgrade()
