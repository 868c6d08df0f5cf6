"""Controls, which exchange nothing."""
