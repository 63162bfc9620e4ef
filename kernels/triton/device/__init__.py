"""Triton functions, and nothing else: their parameters are Triton's tensors and constants."""
