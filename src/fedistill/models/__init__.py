"""Models of clients and servers, and what methods join to them."""
