"""What a model is: its shape, its checkpoint on disk, its tokenizer and chat template."""
