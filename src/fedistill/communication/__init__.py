"""What crosses between server and clients: messages, their codecs, and the frames that carry them."""
