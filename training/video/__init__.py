"""SwiftI2V: autoencoders, motion and detail models, trained on clips."""
