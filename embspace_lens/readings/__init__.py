"""Readings of one model: every parameter as a table of tokens."""
