"""Makes adapters: trains PEFT methods on a frozen base model and writes the folders that the server reads."""
