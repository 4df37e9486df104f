"""Who calls the recorder's core: Lightning, a plain loop, transformers.Trainer."""
