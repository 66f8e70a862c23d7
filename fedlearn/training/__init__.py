"""What a ClientApp imports: the client side of federated algorithms, for PyTorch and Flower."""
