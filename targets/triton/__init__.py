"""The target that generates GPU code through Triton."""
