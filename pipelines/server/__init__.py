"""Talking to a Kubeflow Pipelines API server."""
