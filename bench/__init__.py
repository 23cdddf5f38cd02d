"""Speed, as ratios against a baseline in the same run. ``python -m bench [core|lease|herd|loading …]``."""
