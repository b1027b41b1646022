"""Frames, connections and the all-to-all."""
