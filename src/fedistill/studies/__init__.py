"""What only drives runs: many of them, with settings that differ."""
