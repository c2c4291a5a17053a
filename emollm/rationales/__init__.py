"""EmoPrompt's rationales: written by a teacher that sees the label, kept if the label follows without it, stored."""
