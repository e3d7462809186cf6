"""The stages: ``steps`` has them done in this process, ``launch`` by a job; ``placement`` says
which of the two and by what job, ``scope`` which settings are for which stage.
"""
