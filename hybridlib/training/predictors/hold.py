from hybridlib.training.predictors.base import Predictor, Weights


class Hold(Predictor):
    """Control: predicts that nothing changes, which is what skipping the steps does."""

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        pass
