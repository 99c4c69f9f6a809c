"""What becomes of predictions: overlays, activation maps, a page to look at."""
