"""Measurements of speed and memory, each a ratio taken side by side: `python run_all.py --only speed`."""
