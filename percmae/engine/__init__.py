"""Training and evaluation: each verb of the command line is one function here."""
