"""Models that have a name: versions made of runs, and aliases that say which of them is in use."""

from __future__ import annotations
