"""Images and audio in: real files of every kind, and every way they can be wrong."""
