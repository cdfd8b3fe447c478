"""The student of reasoning-gym's problems: families with our own tracers, a tokenizer, a base and its teacher."""
