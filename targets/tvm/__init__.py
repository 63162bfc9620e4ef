"""Targets that generate code through TVM."""
