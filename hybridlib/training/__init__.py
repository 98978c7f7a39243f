"""Training: models, data, the four phases, predictors. Writes records; knows nothing of their analysis."""
