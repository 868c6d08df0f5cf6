"""From the replies of many clients to one value."""
