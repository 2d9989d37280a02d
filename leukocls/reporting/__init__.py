"""Results for people: tables as text."""
