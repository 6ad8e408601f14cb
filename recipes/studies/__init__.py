"""Studies: what textbooks say of deep networks, measured."""
