"""The optimizer over its parameter groups: who is in which, at which lr, and what may change while it trains."""
