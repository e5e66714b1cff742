"""Options, their values, and the configuration that comes out of them."""
