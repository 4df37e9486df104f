"""Text -> tokenizer, tokens, masks."""
