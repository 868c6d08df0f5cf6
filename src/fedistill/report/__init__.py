"""What a run leaves behind: its folder, the results, the table, the page."""
