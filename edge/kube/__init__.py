"""Clients as pods and virtual machines of a Kubernetes cluster.

The page is docs/how-to/kubernetes.md.
"""
