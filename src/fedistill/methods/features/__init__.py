"""Methods that exchange features, or a generator of features."""
