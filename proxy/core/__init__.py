"""Pure values and grammar: no I/O, no clock, no event loop."""
