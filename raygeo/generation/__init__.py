"""What a model reads and writes: prompts as tokens, tokens as text, and the engines that write completions."""
