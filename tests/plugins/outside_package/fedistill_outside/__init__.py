"""What somebody else adds to fedistill; the entry points stand in pyproject.toml."""
