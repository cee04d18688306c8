"""Published models by domain: immutable versions, channels that point to them, and the selection of a domain."""
