"""A complete run: checks before it, all arms, the folder that it leaves, the table and the report."""
