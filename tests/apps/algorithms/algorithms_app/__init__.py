"""One small app for every algorithm of fedlearn.training."""
