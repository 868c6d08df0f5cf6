"""What more than one test file uses; no test file imports from another."""
