"""The stages of the pipeline: ``steps`` (done in this process), ``launch`` (done by a job) and
``placement`` (which of the two, and by what job)."""
