"""NIID-Bench's simple CNN on Fashion-MNIST (Li et al. 2022, arXiv:2102.02079)."""
