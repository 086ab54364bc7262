"""The pure core: events in, effects out. It never waits, calls back or reads a clock."""
