"""The stages of the pipeline: ``steps`` (done in this process), ``launch`` (done by a job)."""
