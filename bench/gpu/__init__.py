"""What only a GPU can answer. Nothing of the project needs these; each refuses politely where there is no card."""
