"""Models of clients and servers, and the networks that methods add to them."""
