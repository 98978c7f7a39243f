"""Runs trained on the workers of a Dask cluster: what travels, to whom, and what comes back. Knows no torch.

Dask is imported by what needs it, and by nothing else of the study.
"""
