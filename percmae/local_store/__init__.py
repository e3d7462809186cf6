"""The S3 server of a laptop: ``server`` (what is promised), ``folder`` (its files), ``process``."""
