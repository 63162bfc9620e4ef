"""What the TVM code generators share: instruction sets, vector code, the kernel contract."""
