"""Kubernetes jobs built from a configuration (no torch here); see the Kubernetes manifests."""
