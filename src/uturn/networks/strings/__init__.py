"""Denoisers of strings of a grammar, trained here."""
