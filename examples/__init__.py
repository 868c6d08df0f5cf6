"""Makes this folder the package `examples`, before any installed one of that name."""
