"""The S3 server of a laptop: ``server`` (what is promised), ``process`` (its life)."""
