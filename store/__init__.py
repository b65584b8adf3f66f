"""The database: every table, every query, every state change."""
