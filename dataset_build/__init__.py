"""Turns source data sets of emotion, intent, hate, humor and sarcasm into EmoBench."""

__version__ = "0.1.0"
