"""How fast the compiled training step is, beside what the machine could do and what a peer does."""
