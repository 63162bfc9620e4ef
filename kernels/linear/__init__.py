"""Matrix products: the linear layer with its neighbours absorbed, and the plain batched product."""
