"""Trainings as Kubernetes jobs: what is asked for, the objects made of it, and following them.

``work`` says what a job carries out, ``settings`` where and with what, ``spec`` makes the object
of both, ``launcher`` creates it and waits for its end. No torch here: what launches a training
needs none of what the training needs.
"""
