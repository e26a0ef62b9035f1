"""Which PEFT method to use: the measurements, what they say, and how sure that is."""
