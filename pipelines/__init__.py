"""The pipeline as a KFP DAG, compiled for a cluster or run on this machine."""
