"""What draws, plays and writes the samples' data, with NumPy and Pillow only: one file for each kind."""
