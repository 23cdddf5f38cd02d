"""Many AI models on few GPUs: a task is resolved to a model, room is made for it, and it is loaded."""
