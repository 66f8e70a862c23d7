"""DP-SGD on Fashion-MNIST (Tramèr and Boneh 2021, arXiv:2011.11660)."""
