"""Methods that exchange features, or what makes them."""
