"""SwiftI2V."""
