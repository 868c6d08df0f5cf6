"""What a lying client does to its data and messages, for simulations."""
