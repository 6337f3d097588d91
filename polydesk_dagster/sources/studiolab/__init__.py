"""The practice-management system: its client, its records, its events."""
