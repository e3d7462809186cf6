"""``percmae doctor``: what a machine or a cluster lacks, and the command that puts it right."""
