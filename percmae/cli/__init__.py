"""The ``percmae`` command: ``parser`` (its verbs), ``verbs`` (what each does), ``submit``."""
