"""The stages: ``steps`` has them done in this process, ``launch`` by a job; ``scope`` says which
settings are for which of them.
"""
