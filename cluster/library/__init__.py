"""Packed models: pack, format, verify, read."""
