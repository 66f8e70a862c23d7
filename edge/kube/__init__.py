"""Clients as pods and virtual machines of a Kubernetes cluster."""
