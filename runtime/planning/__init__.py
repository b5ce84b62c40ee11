"""Plan memory before a component is loaded."""
