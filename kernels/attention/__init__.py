"""Scaled dot product attention over heads in place, without transposed copies."""
