"""HybridTrainer: training in which most steps are predicted instead of computed, and the study of what that is worth."""
