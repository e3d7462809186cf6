"""Ingest: anybody's images to a dataset in the store.

A source is listed without reading its images (:class:`percmae.ingest.catalogue.Catalogue`); shards
are planned from the list alone, and built side by side.
"""
