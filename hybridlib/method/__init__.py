"""The method: an optimizer that wraps another one and predicts most of its steps. Needs torch alone."""
