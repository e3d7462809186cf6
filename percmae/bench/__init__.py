"""Benchmarks that ship with percmae: figures are ratios of what is measured in one run."""
