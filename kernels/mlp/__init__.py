"""Two linears, one after the other, as one operator."""
