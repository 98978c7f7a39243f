"""HybridTrainer: training in which most steps are predicted instead of computed, and the study of what that is worth."""

import warnings

# transformers loads tqdm's bars for notebooks, of which none is ever shown here; without ipywidgets they warn, with a path.
warnings.filterwarnings("ignore", message="IProgress not found")
